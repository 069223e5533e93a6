"""Loading, overriding, dumping: what is accepted and what comes back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from configs import AtelierConfig, ConfigError, build_config, dump_config, load_config, preset_names, write_resolved
from configs.learner import AsyncSchedule, SyncSchedule
from configs.load import DEFAULT_PRESET, PRESET_DIR, load_as
from configs.rollout import FinalPairsSampler, SigmaThreshold, StepwiseSampler
from configs.spm import SpmConfig

Load = Callable[..., AtelierConfig]


@pytest.mark.parametrize("file", sorted(PRESET_DIR.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_committed_preset_loads_by_file_and_by_name(file: Path) -> None:
    schema = SpmConfig if file.stem in preset_names(SpmConfig) else AtelierConfig
    assert load_as(schema, file) == load_as(schema, file.stem)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_runs_under_its_own_name(name: str) -> None:
    assert load_config(name).run.name == name.replace("_", "-")


def test_without_a_file_the_embedded_default_is_loaded() -> None:
    assert load_config() == load_config(DEFAULT_PRESET)
    assert load_config().model.pretrained == "miniature"


def test_the_released_settings_of_sd15() -> None:
    config = load_config("sd15_spo")
    assert (config.learner.objective.beta, config.learner.objective.clip) == (10.0, 0.1)
    assert (config.learner.optimizer.lr, config.model.lora.rank, config.rollout.sampler.threshold) == (6e-5, 4, 0.3)
    assert config.rollout.sampler.num_candidates == 4
    assert config.learner.max_batches * config.learner.groups_per_batch == 10 * 4000


def test_overrides_win_and_are_typed(load: Load) -> None:
    config = load(
        "learner: {optimizer: {lr: 1}}",
        "learner.optimizer.lr=1e-5",
        "rollout.workers.max=16",
        "rollout.workers.autoscale=true",
        "learner.optimizer.betas=[0.9, 0.95]",
        "evaluation.measures=[judge]",
        "checkpoint.keep = 3",
        "model.lora.alpha=null",
    )
    assert config.learner.optimizer.lr == 1e-5
    assert config.rollout.workers.max == 16
    assert config.rollout.workers.autoscale is True
    assert config.learner.optimizer.betas == (0.9, 0.95)
    assert config.evaluation.measures == ["judge"]
    assert config.checkpoint.keep == 3
    assert config.model.lora.alpha is None


def test_the_last_of_two_overrides_wins(load: Load) -> None:
    assert load("run: {name: a}", "run.seed=1", "run.seed=2").run.seed == 2


def test_text_fields_take_the_text_as_it_is(load: Load) -> None:
    config = load("run: {name: a}", "run.name=2024", "noise.negative_prompt=", "run.dir=42", "prompts.source=true")
    assert config.run.name == "2024"
    assert config.noise.negative_prompt == ""
    assert config.run.path == Path("42")
    assert config.prompts.source == "true"
    assert load("run: {dir: x}", "run.dir=null").run.dir is None


def test_an_override_can_hold_an_equals_sign(load: Load) -> None:
    assert load("run: {name: a}", "noise.negative_prompt=a=b").noise.negative_prompt == "a=b"


def test_a_new_type_drops_what_the_former_variant_had(load: Load) -> None:
    assert load("schedule: {type: async, max_staleness_steps: 4}", "schedule.type=sync").schedule == SyncSchedule()
    for order in ([0, 1], [1, 0]):
        both = ["schedule.type=async", "schedule.max_staleness_steps=5"]
        config = load("schedule: {type: sync}", *(both[index] for index in order))
        assert config.schedule == AsyncSchedule(max_staleness_steps=5)


def test_a_new_type_drops_what_a_variant_had_that_the_file_does_not_name(load: Load) -> None:
    text = "rollout: {sampler: {threshold: 0.0}}"
    assert load(text).rollout.sampler == StepwiseSampler(threshold=0.0)
    assert load(text, "rollout.sampler.num_candidates=3").rollout.sampler == StepwiseSampler(
        threshold=0.0, num_candidates=3
    )
    changed = load(text, "rollout.sampler.type=final_pairs", "learner.objective.type=simpo")
    assert changed.rollout.sampler == FinalPairsSampler()
    assert load(text, "data.type=images", "data.path=x", "learner.objective.type=sft").data.type == "images"


def test_repeating_the_type_keeps_what_the_file_has(load: Load) -> None:
    config = load("schedule: {type: async, max_staleness_steps: 4}", "schedule.type=async")
    assert config.schedule == AsyncSchedule(max_staleness_steps=4)


def test_a_section_with_variants_has_the_default_one(load: Load) -> None:
    assert load("schedule: {max_staleness_steps: 4}").schedule == AsyncSchedule(max_staleness_steps=4)


def test_an_empty_section_means_its_defaults(load: Load) -> None:
    assert load("run:\nschedule:\nlearner:\n  optimizer:\n") == AtelierConfig()


def test_a_section_can_be_replaced_as_a_whole(load: Load) -> None:
    config = load("rollout: {sampler: {threshold: 0.2}}", "rollout.sampler.threshold={low: 0.35, high: 0.5}")
    assert config.rollout.sampler.threshold == SigmaThreshold(low=0.35, high=0.5)


def test_a_value_gives_way_to_a_section(load: Load) -> None:
    config = load("run: {name: a}", "rollout.sampler.threshold.low=0.1", "rollout.sampler.threshold.high=0.2")
    assert config.rollout.sampler.threshold == SigmaThreshold(low=0.1, high=0.2)


def test_custom_resources_take_any_name(load: Load) -> None:
    config = load("run: {name: a}", "rollout.workers.resources.custom.rollout_node=0.01")
    assert config.rollout.workers.resources.custom == {"rollout_node": 0.01}


@pytest.mark.parametrize("name", preset_names())
def test_dump_and_load_round_trip_exactly(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["run.dir=/data/runs/1e5", "run.name=007", "prompts.source='no: \"x\"\n'"])
    file = tmp_path / "resolved.yaml"
    write_resolved(config, file)
    assert load_config(file) == config
    assert dump_config(load_config(file)) == dump_config(config)
    assert file.read_text().startswith("# The resolved configuration of run '007'")
    assert [path.name for path in tmp_path.iterdir()] == ["resolved.yaml"]


def test_every_field_is_in_the_dump() -> None:
    assert build_config(AtelierConfig().model_dump(mode="json")) == AtelierConfig()
    assert dump_config(AtelierConfig()).count("\n") > 80


def test_a_configuration_and_its_error_cross_processes() -> None:
    config = load_config()
    assert pickle.loads(pickle.dumps(config)) == config
    error = ConfigError("x.yaml", ["a", "b"])
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "x.yaml: a\nx.yaml: b"
    assert isinstance(copy, ValueError)


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().run.name = "other"  # type: ignore[misc]
