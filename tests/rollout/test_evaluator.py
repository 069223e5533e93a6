"""The evaluator: fixed prompts and seeds, the scorer at timestep 0, adapters verified, the base behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import Tensor

from configs import AtelierConfig
from configs.learner import EvaluationSection
from configs.model import LoraSection, ModelSection, NoiseSection
from configs.rollout import RolloutSection
from configs.schema import RunSection
from configs.scorers import ClipScoreScorer, ImportedScorer, StepAwareScorer
from configs.statistics import STATISTICS
from reward.diversity import build_embedder
from rollout.adapter import adapter_checksum, serialise_adapter
from rollout.contact_sheet import grid
from rollout.drift import picture_statistics
from rollout.eval_result import differences
from rollout.evaluator import Evaluator, evaluate, to_uint8
from rollout.evaluator_actor import create_evaluator
from rollout.policy import DiffusionPolicy, load_policy
from rollout.prompts import evaluation_prompts
from rollout.sampling import sample_images
from tests.fakes import RedScorer

PROMPTS = ["a red dot", "a blue dot", "two dots", "no dots", "a line"]
SEEDS = [20, 21, 22, 23, 24]
NOISE = NoiseSection(num_steps=3)


@pytest.fixture
def policy(base: Path) -> DiffusionPolicy:
    return load_policy(ModelSection(pretrained=str(base)), NOISE, "cpu", seed=0)


@pytest.fixture
def config(base: Path, clip: Path, tmp_path: Path) -> AtelierConfig:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return AtelierConfig(
        run=RunSection(name="tiny", dir=tmp_path / "run"),
        model=ModelSection(pretrained=str(base), lora=LoraSection(rank=2)),
        noise=NOISE,
        rollout=RolloutSection(scorer=StepAwareScorer(clip=str(clip))),
        evaluation=EvaluationSection(
            prompts=str(tmp_path / "prompts.txt"), num_prompts=4, grid_size=4, seed=20, batch_size=3
        ),
    )


def trained_state(config: AtelierConfig) -> dict[str, Tensor]:
    state = load_policy(config.model, config.noise, "cpu", seed=0).adapter_state()
    return {name: tensor + 0.2 for name, tensor in state.items()}


def brightness(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    return {"bright": (images.mean(dim=(1, 2, 3)) > 0).float(), "mean": images.mean(dim=(1, 2, 3))}


def test_pictures_scores_and_measures_are_those_of_plain_sampling(policy: DiffusionPolicy) -> None:
    scorer = RedScorer()
    result = evaluate(policy, scorer, PROMPTS, SEEDS, [brightness], batch_size=2)
    images = sample_images(policy, PROMPTS, SEEDS, batch_size=2)
    assert scorer.timesteps_seen == [0] * 5
    assert result.images.dtype == np.uint8 and np.array_equal(result.images, to_uint8(images))
    assert result.per_picture["reward"] == pytest.approx(RedScorer().score(images, PROMPTS, torch.zeros(5)).tolist())
    assert result.per_picture["mean"] == pytest.approx(images.mean(dim=(1, 2, 3)).tolist())
    assert set(result.metrics) == set(result.per_picture) == {"reward", "bright", "mean"}
    assert result.metrics["mean"] == pytest.approx(sum(result.per_picture["mean"]) / 5)
    assert result.scalars()["eval/reward"] == result.scalars()["eval/red-1"] == result.metrics["reward"]
    assert result.scorer == "red-1" and "red-1" not in result.metrics
    assert result.prompts == tuple(PROMPTS)


def test_the_batch_size_does_not_matter(policy: DiffusionPolicy) -> None:
    one, all_at_once = (evaluate(policy, RedScorer(), PROMPTS, SEEDS, [], batch_size=size) for size in (1, 5))
    assert one.per_picture["reward"] == pytest.approx(all_at_once.per_picture["reward"], abs=1e-3)


def test_pictures_become_bytes() -> None:
    picture = torch.tensor([-1.0, -0.5, 0.0, 1.0, 1.2, -3.0]).reshape(1, 3, 1, 2)
    assert to_uint8(picture).shape == (1, 1, 2, 3)
    assert to_uint8(picture).transpose(0, 3, 1, 2).flatten().tolist() == [0, 64, 128, 255, 255, 0]


def test_a_score_that_is_not_finite_is_loud_and_names_the_prompt(policy: DiffusionPolicy) -> None:
    def broken(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"odd": torch.tensor([float("nan") if text == "two dots" else 1.0 for text in prompts])}

    with pytest.raises(FloatingPointError, match="odd is nan for prompt 'two dots'"):
        evaluate(policy, RedScorer(), PROMPTS, SEEDS, [broken], batch_size=2)
    with pytest.raises(FloatingPointError, match="reward is -inf"):
        evaluate(policy, RedScorer(scale=float("inf")), PROMPTS, SEEDS, [], batch_size=2)
    with pytest.raises(ValueError, match="5 prompts and 1 seeds"):
        evaluate(policy, RedScorer(), PROMPTS, [1], [], batch_size=2)


def test_the_base_stays_the_base_and_an_adapter_changes_pictures(config: AtelierConfig) -> None:
    evaluator, state = Evaluator(config), trained_state(config)
    before = evaluator.evaluate(None)
    after = evaluator.evaluate(serialise_adapter(state), adapter_checksum(state))
    assert before.prompts == tuple(PROMPTS[:4])
    assert not np.array_equal(before.images, after.images)
    again = evaluator.evaluate(None)
    assert np.array_equal(before.images, again.images) and before.metrics == again.metrics
    assert np.array_equal(evaluator.evaluate(serialise_adapter(state)).images, after.images)
    change = differences(before, after)["reward"]
    assert change.mean == pytest.approx(after.metrics["reward"] - before.metrics["reward"], abs=1e-6)
    assert change.low < change.mean < change.high and change.n == 4
    assert evaluator.peak_memory_bytes() > 10_000_000


def test_held_out_scorers_and_statistics_of_the_same_pictures(config: AtelierConfig, clip: Path) -> None:
    held_out = [ClipScoreScorer(clip=str(clip)), ImportedScorer(target="tests.fakes:RedScorer", options={"scale": 2.0})]
    update = {"scorers": held_out, "pictures_per_prompt": 2, "embedding": str(clip)}
    evaluation = EvaluationSection(**{**config.evaluation.model_dump(exclude={"resources", "scorers"}), **update})
    evaluator = Evaluator(config.model_copy(update={"evaluation": evaluation}))
    state = trained_state(config)
    before, after = evaluator.evaluate(None), evaluator.evaluate(serialise_adapter(state))
    assert after.prompts == tuple(PROMPTS[:4] * 2) and len(after.images) == 8
    names = list(after.metrics)
    assert after.scorer.startswith("step_aware-") and f"eval/{after.scorer}" in after.scalars() and after.seconds > 0
    assert names[0] == "reward" and names[1].startswith("clip_score-") and names[2] == "red-1"
    red = torch.from_numpy(after.images[..., 0]).float().mean(dim=(1, 2)) / 127.5 - 1
    assert after.per_picture["red-1"] == pytest.approx((2 * red).tolist(), abs=0.05)
    expected = picture_statistics(after.images, after.prompts, build_embedder(str(clip)), 5)
    assert after.statistics == pytest.approx(expected, rel=1e-4, abs=1e-5) and list(expected) == list(STATISTICS)
    assert set(before.drift.values()) == {0.0}
    for tag, change in after.drift.items():
        assert change == after.statistics[tag] - before.statistics[tag]
        assert after.scalars()[tag] == change
    assert any(abs(change) > 1e-3 for change in after.drift.values())
    restarted = Evaluator(config.model_copy(update={"evaluation": evaluation}))
    assert restarted.evaluate(serialise_adapter(state)).drift == after.drift, "the base is evaluated again"


def test_a_held_out_scorer_that_trains_under_another_name_is_refused(config: AtelierConfig, clip: Path) -> None:
    again = [ClipScoreScorer(clip=str(clip)), ClipScoreScorer(clip=f"{clip}/")]
    evaluation = config.evaluation.model_copy(update={"scorers": again})
    with pytest.raises(ValueError, match=r"evaluation.scorers: clip_score-.* is there twice"):
        Evaluator(config.model_copy(update={"evaluation": evaluation}))


def test_seeds_count_up_from_the_configured_one(config: AtelierConfig) -> None:
    expected = sample_images(load_policy(config.model, NOISE, "cpu", seed=0), PROMPTS[:4], SEEDS[:4], batch_size=3)
    assert np.array_equal(Evaluator(config).evaluate(None).images, to_uint8(expected))


def test_an_adapter_that_is_not_the_published_one_is_refused(config: AtelierConfig) -> None:
    evaluator, state = Evaluator(config), trained_state(config)
    data = serialise_adapter(state)
    with pytest.raises(ValueError, match="checksum"):
        evaluator.evaluate(data, "0" * 64)
    with pytest.raises(ValueError, match="no published weights"):
        evaluator.evaluate(data[: len(data) // 2], adapter_checksum(state))
    state.pop(sorted(state)[0])
    with pytest.raises(ValueError, match="another model or rank"):
        evaluator.evaluate(serialise_adapter(state), adapter_checksum(state))


def test_evaluation_prompts_are_the_first_of_the_heldout_list(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    assert evaluation_prompts(EvaluationSection(prompts=str(path), num_prompts=2)) == tuple(PROMPTS[:2])
    with pytest.raises(ValueError, match=r"num_prompts is 6.*has 5"):
        evaluation_prompts(EvaluationSection(prompts=str(path), num_prompts=6))


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_ray_wrapper_gives_what_the_plain_class_gives(config: AtelierConfig, local_ray: None) -> None:
    state = trained_state(config)
    actor = create_evaluator(config)
    found = ray.get(actor.evaluate.remote(serialise_adapter(state), adapter_checksum(state)))
    assert ray.get_actor("atelier-evaluator-tiny", namespace="atelier") == actor
    expected = Evaluator(config).evaluate(serialise_adapter(state))
    assert np.array_equal(found.images, expected.images)
    assert found.metrics == pytest.approx(expected.metrics)
    short, picture = ray.get(actor.report.remote(serialise_adapter(state), adapter_checksum(state)))
    assert picture == grid(expected.images, PROMPTS[:4]) and len(short.images) == 0
    assert short.scalars() == pytest.approx(expected.scalars()) and short.prompts == expected.prompts
