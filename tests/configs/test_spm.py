"""The second root of a configuration: loading, refusing, dumping and documenting work for it alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import ConfigError, dump_config, load_config
from configs.docs import render
from configs.load import build_as, load_as, preset_names
from configs.spm import SpmConfig
from configs.tree import entries


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_as(SpmConfig, "sd15_spm", overrides)
    return str(caught.value)


def test_presets_belong_to_their_root() -> None:
    assert preset_names(SpmConfig) == ["miniature_spm", "sd15_spm", "sdxl_spm"]
    assert not set(preset_names()) & set(preset_names(SpmConfig))


def test_the_methods_numbers() -> None:
    small, large = load_as(SpmConfig, "sd15_spm"), load_as(SpmConfig, "sdxl_spm")
    assert (small.training.optimizer.lr, small.training.optimizer.weight_decay) == (3e-6, 0.3)
    assert (small.training.max_steps, large.training.max_steps) == (8000, 7000)
    assert (large.training.optimizer.lr, large.labels.by, large.labels.tie_margin) == (1e-6, "scorer", 0.1)
    for config in (small, large):
        training = config.training
        optimizer = training.optimizer
        assert (optimizer.warmup_steps, optimizer.decay, optimizer.final_lr_ratio) == (500, "linear", 0)
        assert training.ranks * training.micro_batch_pairs * training.accumulation == 4 * 16 * 16
        assert config.base.guidance_scale == 5 and config.validation.timesteps == [0, 251, 501, 701, 951]


def test_overrides_and_round_trip(tmp_path: Path) -> None:
    config = load_as(SpmConfig, "sd15_spm", ["data.where.annotator=[kim, lee]", "run.name=mine"])
    assert config.data.where == {"annotator": ["kim", "lee"]} and config.run.name == "mine"
    (tmp_path / "copy.yaml").write_text(dump_config(config))
    assert load_as(SpmConfig, tmp_path / "copy.yaml") == config
    assert build_as(SpmConfig, config.model_dump(mode="json")) == config


def test_unknown_keys_name_the_nearest_of_this_root(tmp_path: Path) -> None:
    assert "unknown key training.lr; did you mean training.optimizer.lr?" in refused("training.lr=1")
    (tmp_path / "a.yaml").write_text("training: {optimizer: {lrr: 1.0}}\n")
    with pytest.raises(ConfigError, match=r"training\.optimizer\.lrr; did you mean training\.optimizer\.lr\?"):
        load_as(SpmConfig, tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"did you mean sd15_spm\? Presets: miniature_spm, sd15_spm, sdxl_spm"):
        load_as(SpmConfig, "sd15_smp")
    with pytest.raises(ConfigError, match="unknown key labels"):
        load_config("sd15_spm")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.engine.zero_stage=3"], "training.engine.zero_stage = 3: the preference model fits"),
        (["training.optimizer.warmup_steps=8000"], "warmup_steps = 8000 is not below training.max_steps = 8000"),
        (["training.engine.backend=nccl", "training.resources.gpus=0"], "backend = nccl needs a GPU"),
        (["training.engine.offload=cpu", "training.resources.gpus=0"], "offload = cpu needs"),
        (["training.resources.gpus=2"], "training.resources.gpus = 2: one rank drives one GPU"),
        (["data.held_out=0", "validation.source=null"], "no pair would be left to validate on"),
        (["validation.source=null", "validation.split=train"], "validation.split = train with validation.source"),
        (["validation.timesteps=[1, 1]"], "holds one timestep twice"),
        (["validation.timesteps=[1000]"], "it must be below 1000"),
        (["labels.by=pickscore"], "Did you mean scorer? Choose from data, scorer."),
    ],
)
def test_contradictions(overrides: list[str], words: str) -> None:
    assert words in refused(*overrides)


def test_every_key_is_documented() -> None:
    text = render()
    keys = [entry for entry in entries((SpmConfig,)) if entry.is_plain]
    assert [entry.path for entry in keys if f"| `{entry.path}` |" not in text] == []
    assert [entry.path for entry in keys if not entry.info.description] == []
