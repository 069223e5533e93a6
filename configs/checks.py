"""What no single field can know: settings that contradict each other, refused when the configuration is loaded.

Every sentence names both fields, their values and the fix. What works, but is hardly meant, is in `configs.cautions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from configs.data import OnlineData
from configs.evaluation_checks import EVALUATION_CHECKS
from configs.learner import AsyncSchedule, SyncSchedule
from configs.model_checks import MODEL_CHECKS
from configs.rollout import ResourcesSection
from configs.sampling_checks import SAMPLING_CHECKS
from configs.sources import objective_problems

if TYPE_CHECKING:
    from configs.schema import AtelierConfig

_RAY_OWN_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")


def problems(config: AtelierConfig) -> list[str]:
    """A sentence for every contradiction."""
    return [sentence for check in CHECKS for sentence in check(config)]


# Batches, queue, staleness


def _ranks_share_a_batch(config: AtelierConfig) -> Iterator[str]:
    groups, ranks = config.learner.groups_per_batch, config.learner.ranks
    if groups % ranks:
        below, above = groups // ranks * ranks, (groups // ranks + 1) * ranks
        choice = f"{below} or {above}" if below else f"{above}"
        yield (
            f"learner.groups_per_batch = {groups} is not divisible by learner.ranks = {ranks}: every rank takes an "
            f"equal share of a global batch. Set groups_per_batch to {choice}."
        )


def _queue_holds_a_batch(config: AtelierConfig) -> Iterator[str]:
    if not isinstance(config.data, OnlineData):
        return
    capacity, groups = config.queue.capacity_groups, config.learner.groups_per_batch
    if capacity < groups:
        yield (
            f"queue.capacity_groups = {capacity} is below learner.groups_per_batch = {groups}: the queue would be full "
            f"before one global batch is complete, and both sides would wait for ever. Set capacity_groups to "
            f"{groups} or more."
        )
    if config.queue.shards > capacity:
        yield (
            f"queue.shards = {config.queue.shards} is above queue.capacity_groups = {capacity}: some shards would "
            f"never hold a group. Set shards to {capacity} or less."
        )


def _chunk_fits_a_batch(config: AtelierConfig) -> Iterator[str]:
    if not isinstance(config.data, OnlineData):
        return
    chunk, groups = config.rollout.workers.chunk_groups, config.learner.groups_per_batch
    if isinstance(config.schedule, SyncSchedule) and chunk > groups:
        yield (
            f"rollout.workers.chunk_groups = {chunk} is above learner.groups_per_batch = {groups} with schedule.type = "
            f"sync: the prompts of the next batch wait for weights that this batch trains. Set chunk_groups to "
            f"{groups} or less."
        )


def _fresh_groups_are_eligible(config: AtelierConfig) -> Iterator[str]:
    if not isinstance(config.data, OnlineData):
        return
    schedule, updates = config.schedule, config.learner.updates_per_batch
    if not isinstance(schedule, AsyncSchedule):
        return
    between = updates * schedule.publish_every_batches
    if schedule.max_staleness_steps < between:
        yield (
            f"schedule.max_staleness_steps = {schedule.max_staleness_steps} is below learner.updates_per_batch * "
            f"schedule.publish_every_batches = {updates} * {schedule.publish_every_batches} = {between}: the learner "
            f"takes that many optimiser steps between two publications, so that groups sampled meanwhile would be too "
            f"old at the next one. Set max_staleness_steps to {between} or more, or use schedule.type = sync."
        )


def _warmup_ends(config: AtelierConfig) -> Iterator[str]:
    warmup = config.learner.optimizer.warmup_steps
    total = config.learner.max_batches * config.learner.updates_per_batch
    if warmup >= total:
        yield (
            f"learner.optimizer.warmup_steps = {warmup} is not below learner.max_batches * learner.updates_per_batch = "
            f"{total} optimiser steps: the run would end before its peak learning rate. Set warmup_steps below {total}."
        )


# Processes and devices


def _pool_limits(config: AtelierConfig) -> Iterator[str]:
    workers = config.rollout.workers
    if workers.min > workers.max:
        yield (
            f"rollout.workers.min = {workers.min} is above rollout.workers.max = {workers.max}. "
            f"Set max to {workers.min} or more."
        )
    elif not workers.min <= workers.initial <= workers.max:
        side, limit = ("min", workers.min) if workers.initial < workers.min else ("max", workers.max)
        word = "below" if side == "min" else "above"
        yield (
            f"rollout.workers.initial = {workers.initial} is {word} rollout.workers.{side} = {limit}. "
            f"Set initial to a value from {workers.min} to {workers.max}, or move {side}."
        )


def _collectives_have_their_gpus(config: AtelierConfig) -> Iterator[str]:
    learner, gpus = config.learner, config.learner.resources.gpus
    if learner.engine.backend == "nccl" and gpus == 0:
        yield (
            "learner.engine.backend = nccl needs a GPU, and learner.resources.gpus = 0. "
            "Set backend to auto, or gpus to 1."
        )
    elif learner.engine.backend == "nccl" and gpus < 1 and learner.ranks > 1:
        yield (
            f"learner.engine.backend = nccl with learner.resources.gpus = {gpus:g} and learner.ranks = "
            f"{learner.ranks}: nccl refuses two ranks on one GPU, which a share below 1 allows. Set gpus to 1, or "
            f"backend to auto."
        )


def _offload_has_something_to_move(config: AtelierConfig) -> Iterator[str]:
    engine = config.learner.engine
    if engine.offload == "none":
        return
    if engine.zero_stage == 0:
        yield (
            f"learner.engine.offload = {engine.offload} needs optimiser state that ZeRO has partitioned, and "
            f"learner.engine.zero_stage = 0. Set zero_stage to 1, 2 or 3, or offload to none."
        )
    if config.learner.resources.gpus == 0:
        yield (
            f"learner.engine.offload = {engine.offload} moves state off a GPU, and learner.resources.gpus = 0: "
            f"everything is in CPU memory already. Set offload to none."
        )


def _one_gpu_an_actor(config: AtelierConfig) -> Iterator[str]:
    for path, more, resources in _resources(config):
        if resources.gpus > 1:
            yield (
                f"{path}.gpus = {resources.gpus:g}: one actor drives one GPU, so that the others would idle. "
                f"Set {path}.gpus to 1 or a fraction{more}."
            )
        for name in resources.custom:
            if name in _RAY_OWN_RESOURCES:
                yield (
                    f"{path}.custom.{name} = {resources.custom[name]:g}: {name} is Ray's own resource. "
                    f"Use {path}.cpus or {path}.gpus, or another name."
                )


def _resources(config: AtelierConfig) -> Iterator[tuple[str, str, ResourcesSection]]:
    """Path, how to have more of that role, and the resources of every role."""
    yield "rollout.workers.resources", " and raise rollout.workers.initial", config.rollout.workers.resources
    yield "learner.resources", " and raise learner.ranks", config.learner.resources
    yield "evaluation.resources", "", config.evaluation.resources


CHECKS: tuple[Callable[[AtelierConfig], Iterator[str]], ...] = (
    *SAMPLING_CHECKS,
    objective_problems,
    *MODEL_CHECKS,
    _ranks_share_a_batch,
    _queue_holds_a_batch,
    _chunk_fits_a_batch,
    _fresh_groups_are_eligible,
    _warmup_ends,
    _pool_limits,
    _collectives_have_their_gpus,
    _offload_has_something_to_move,
    _one_gpu_an_actor,
    *EVALUATION_CHECKS,
)
