"""Which objective can learn from which source, and what else an objective rules out.

    objective ─ reads ─► kind of group ◄─ gives ─ source

One table a side; every refusal names both fields, their values, the reason and the fix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from configs.data import OnlineData
from configs.objectives import REFERENCES, PixelSection

if TYPE_CHECKING:
    from configs.schema import AtelierConfig

READS: dict[str, tuple[str, str]] = {
    "spo": ("stepwise", "pairs of single denoising steps"),
    "simpo": ("final_pairs", "pairs of finished pictures"),
    "dpo": ("final_pairs", "pairs of finished pictures"),
    "mapo": ("final_pairs", "pairs of finished pictures"),
    "sft": ("final_pairs", "finished pictures"),
    "ddpo": ("trajectory", "whole trajectories with rewards"),
    "d3po": ("trajectory", "pairs of whole trajectories"),
}
"""`learner.objective.type` -> the `rollout.sampler.type` that feeds it, and what it reads."""

GIVES = {
    "stepwise": "pairs of single denoising steps",
    "final_pairs": "pairs of finished pictures",
    "trajectory": "whole trajectories",
}
"""`rollout.sampler.type` -> what it makes."""


def objective_problems(config: AtelierConfig) -> Iterator[str]:
    """A sentence for everything that the objective cannot go together with."""
    yield from _objective_has_its_source(config)
    yield from _history_holds_a_group(config)
    yield from _reference_is_asked_of_a_loss_that_has_one(config)
    pixel = getattr(config.learner.objective, "pixel", None)
    if pixel is not None:
        yield from _pixel_weights(pixel)


OFFLINE_READS = {"pairs": ("simpo", "dpo", "mapo", "sft"), "images": ("sft",)}
"""`data.type` of a data set -> the objectives that can learn from it (`sft` takes the preferred images of pairs)."""


def _objective_has_its_source(config: AtelierConfig) -> Iterator[str]:
    if not isinstance(config.data, OnlineData):
        yield from _objective_has_its_data(config)
        return
    objective, sampler = config.learner.objective.type, config.rollout.sampler.type
    wanted, what = READS[objective]
    if sampler != wanted:
        fitting = ", ".join(name for name, (source, _) in READS.items() if source == sampler)
        yield (
            f"learner.objective.type = {objective} reads {what}, and rollout.sampler.type = {sampler} makes "
            f"{GIVES[sampler]}. Set rollout.sampler.type to {wanted}, or learner.objective.type to one of {fitting}."
        )


def _objective_has_its_data(config: AtelierConfig) -> Iterator[str]:
    objective, kind = config.learner.objective.type, config.data.type
    if objective not in OFFLINE_READS[kind]:
        _, what = READS[objective]
        offline = [name for name, readers in OFFLINE_READS.items() if objective in readers]
        other = f" or {' or '.join(offline)}" if offline else ""
        yield (
            f"learner.objective.type = {objective} reads {what}, and data.type = {kind} gives "
            f"{'single captioned images' if kind == 'images' else 'pairs of finished images'}. Set data.type to "
            f"online{other}, or learner.objective.type to one of {', '.join(OFFLINE_READS[kind])}."
        )
    if not isinstance(config.data, OnlineData) and config.data.split and config.data.format not in ("auto", "parquet"):
        yield (
            f"data.split = {config.data.split} with data.format = {config.data.format}: a split is read from the hub, "
            f"where only parquet can be read a part at a time. Set data.format to parquet, or take data.split out."
        )
    sampler = config.rollout.sampler
    if sampler.type != type(config.rollout)().sampler.type:  # a preset's own settings for rollouts do no harm
        yield (
            f"rollout.sampler (type {sampler.type}) is set, and data.type = {kind}: nothing is rolled out, so that it "
            f"would have no effect. Take rollout.sampler out, or set data.type to online."
        )


def _history_holds_a_group(config: AtelierConfig) -> Iterator[str]:
    history = getattr(config.learner.objective, "prompt_history", 0)
    trajectories = getattr(config.rollout.sampler, "num_trajectories", 0)
    if 0 < history < trajectories:
        yield (
            f"learner.objective.prompt_history = {history} is below rollout.sampler.num_trajectories = {trajectories}: "
            f"a group's own rewards would not all be kept. Set prompt_history to {trajectories} or more, or to 0, "
            f"which normalises over each group alone."
        )


def _reference_is_asked_of_a_loss_that_has_one(config: AtelierConfig) -> Iterator[str]:
    side, objective = config.learner.reference_at, config.learner.objective.type
    if side is None or side in REFERENCES[objective]:
        return
    if REFERENCES[objective]:
        yield (
            f"learner.reference_at = {side} with learner.objective.type = {objective}: its noise is drawn by the "
            f"learner, so that the reference cannot be evaluated earlier. Set reference_at to "
            f"{REFERENCES[objective][0]}, or leave it out."
        )
    else:
        yield (
            f"learner.reference_at = {side} with learner.objective.type = {objective}, which has no reference. Leave "
            f"reference_at out, or set objective.type to a loss with one "
            f"({', '.join(name for name, sides in REFERENCES.items() if sides)})."
        )


def _pixel_weights(pixel: PixelSection) -> Iterator[str]:
    for name in ("weight", "latent_weight"):
        value = getattr(pixel, name)
        if value < 0:
            yield (
                f"learner.objective.pixel.{name} = {value:g} is negative: it would reward the errors that the term "
                f"measures. Set it to 0, which leaves the term out, or more."
            )
    if pixel.weight == pixel.latent_weight == 0:
        yield (
            "learner.objective.pixel.weight = 0 and learner.objective.pixel.latent_weight = 0: nothing is left to "
            "train on. Set one of them above 0."
        )
