"""Settings of the evaluation that contradict each other or the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from configs.model import MINIATURE
from configs.rollout import FinalPairsSampler
from configs.scorers import MixtureScorer
from configs.statistics import STATISTICS, WITHIN

if TYPE_CHECKING:
    from configs.schema import AtelierConfig


def held_out_scorers(config: AtelierConfig) -> Iterator[str]:
    """A scorer that trains is not held out; nor does one count twice."""
    rollout, seen = config.rollout, []
    sampler = rollout.sampler
    in_use = [("rollout.scorer", part) for part in _parts(rollout.scorer)]
    if isinstance(sampler, FinalPairsSampler):
        mixed = [part for weighted in sampler.mixture for part in _parts(weighted.scorer)]
        in_use += [("rollout.sampler.mixture", part) for part in mixed]
        in_use += [("rollout.sampler.flaws", part) for part in _parts(sampler.flaws)]
    for number, scorer in enumerate(config.evaluation.scorers):
        path = f"evaluation.scorers[{number}]"
        trained = next((place for place, part in in_use if part in _parts(scorer)), None)
        if trained is not None:
            yield (
                f"{path} (type {scorer.type}) is in use as {trained}: what the model is trained for cannot also be "
                f"held out; its scores are reported as eval/reward. Take it out of evaluation.scorers."
            )
        elif scorer in seen:
            yield f"{path} (type {scorer.type}) is there already. Take it out of evaluation.scorers."
        seen.append(scorer)


def drift_can_be_seen(config: AtelierConfig) -> Iterator[str]:
    """Limits on statistics that exist, at evaluations that happen."""
    evaluation = config.evaluation
    for tag in evaluation.stop_on_drift:
        if tag not in STATISTICS:
            yield f"evaluation.stop_on_drift holds {tag}, which is no statistic. Choose from {', '.join(STATISTICS)}."
        elif tag in WITHIN and evaluation.pictures_per_prompt < 2:
            yield (
                f"evaluation.stop_on_drift holds {tag}, which compares pictures of one prompt, and "
                f"evaluation.pictures_per_prompt = {evaluation.pictures_per_prompt}. Set it to 2 or more."
            )
        elif tag not in WITHIN and tag.startswith("diversity/") and evaluation.num_prompts < 2:
            yield (
                f"evaluation.stop_on_drift holds {tag}, which compares prompts, and evaluation.num_prompts = "
                f"{evaluation.num_prompts}. Set it to 2 or more."
            )
    if evaluation.stop_on_drift and evaluation.every_batches is None:
        yield (
            "evaluation.stop_on_drift is set and evaluation.every_batches = null: nothing is measured before the run "
            "ends. Set every_batches, for instance to 10."
        )


def _parts(scorer: Any) -> list[Any]:
    """The scorer, or what it is mixed of."""
    if scorer is None:
        return []
    return [part.scorer for part in scorer.parts] if isinstance(scorer, MixtureScorer) else [scorer]


def _grid_has_its_prompts(config: AtelierConfig) -> Iterator[str]:
    evaluation = config.evaluation
    if evaluation.grid_size > evaluation.num_prompts:
        yield (
            f"evaluation.grid_size = {evaluation.grid_size} is above evaluation.num_prompts = "
            f"{evaluation.num_prompts}: the grid shows the first evaluated pictures. Set grid_size to "
            f"{evaluation.num_prompts} or less."
        )


def _best_is_evaluated(config: AtelierConfig) -> Iterator[str]:
    best, every = config.checkpoint.best, config.evaluation.every_batches
    if best is not None and every is None:
        yield (
            f"checkpoint.best.metric = {best.metric} needs evaluations while the run trains, and "
            f"evaluation.every_batches is unset. Set every_batches, or take checkpoint.best out."
        )


def _judge_knows_the_model(config: AtelierConfig) -> Iterator[str]:
    if "judge" in config.evaluation.measures and config.model.pretrained != MINIATURE:
        yield (
            f"evaluation.measures holds judge, which reads the pictures of the miniature only, and model.pretrained = "
            f"{config.model.pretrained}. Take judge out, or set model.pretrained to miniature."
        )


EVALUATION_CHECKS = (
    _grid_has_its_prompts,
    _best_is_evaluated,
    _judge_knows_the_model,
    held_out_scorers,
    drift_can_be_seen,
)
