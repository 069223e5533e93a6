"""Settings that are allowed and probably not meant: a run says so, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from configs.data import OnlineData
from configs.learner import AsyncSchedule
from configs.model import MINIATURE
from configs.schema import AtelierConfig


def cautions(config: AtelierConfig) -> list[str]:
    """A sentence for every one of them, with the fields and their values."""
    return [sentence for check in CAUTIONS for sentence in check(config)]


def _dropout_breaks_parity(config: AtelierConfig) -> Iterator[str]:
    dropout = config.model.lora.dropout
    if dropout > 0:
        yield (
            f"model.lora.dropout = {dropout:g}: sampler and learner no longer agree on log-probabilities, since only "
            f"the learner drops. The papers use 0."
        )


def _full_queue_grows_stale(config: AtelierConfig) -> Iterator[str]:
    schedule, learner = config.schedule, config.learner
    if not isinstance(schedule, AsyncSchedule) or not isinstance(config.data, OnlineData):
        return
    waited = config.queue.capacity_groups // learner.groups_per_batch * learner.updates_per_batch
    if waited > schedule.max_staleness_steps:
        yield (
            f"queue.capacity_groups = {config.queue.capacity_groups} holds {waited} optimiser steps' worth of groups "
            f"and schedule.max_staleness_steps = {schedule.max_staleness_steps}: when rollouts are faster than the "
            f"learner, groups grow too old while they wait and are dropped."
        )


def _miniature_only_knows_its_world(config: AtelierConfig) -> Iterator[str]:
    if config.model.pretrained == MINIATURE:
        return
    prompts = [("prompts.source", config.prompts.source)] if isinstance(config.data, OnlineData) else []
    for path, value in (
        *prompts,
        ("rollout.scorer.clip", getattr(config.rollout.scorer, "clip", None)),
        ("evaluation.prompts", config.evaluation.prompts),
    ):
        if value == MINIATURE:
            yield (
                f"{path} = miniature with model.pretrained = {config.model.pretrained}: the bundled one knows only the "
                f"miniature's pictures of shapes. Name your own."
            )


def _guidance_is_on_for_negative_prompts(config: AtelierConfig) -> Iterator[str]:
    if config.noise.guidance_scale == 1 and config.noise.negative_prompt:
        yield (
            f"noise.guidance_scale = 1 switches guidance off, so that noise.negative_prompt = "
            f"'{config.noise.negative_prompt}' has no effect."
        )


CAUTIONS: tuple[Callable[[AtelierConfig], Iterator[str]], ...] = (
    _dropout_breaks_parity,
    _full_queue_grows_stale,
    _miniature_only_knows_its_world,
    _guidance_is_on_for_negative_prompts,
)
