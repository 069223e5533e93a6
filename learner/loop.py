"""The learner's loop: what every rank does, from top to bottom. Ray Train's workers call it, and tests without Ray.

    queue ── take ──► groups ──► U updates on all ranks ──► checkpoint ──► publish ──► mailbox ──► workers
      ▲                                  │                                    └──► evaluate
      └────────── retire ────────────────┴──► telemetry

Batch b is trained at steps b U + 1 .. (b + 1) U; a step whose update has no pair, or a non-finite loss or gradient,
changes nothing but is counted, so that step, batch and learning rate never drift apart. The checkpoint comes before the
publish, while the queue is quiet: under `schedule: sync` no group of the next batch exists yet.
Rank 0 alone talks to mailbox and telemetry; whether to go on is agreed on by all ranks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from configs.data import OnlineData
from configs.learner import AsyncSchedule
from configs.objectives import pixel_of
from configs.schema import AtelierConfig
from learner.advantages import PromptRewards
from learner.agreement import first_fault
from learner.batching import split_updates
from learner.checkpoint import REWARDS, load_checkpoint, save_checkpoint
from learner.committed import Counters
from learner.datasets.rows import DataError
from learner.engine import build_engine, gather_trained, learning_rate
from learner.generators import seed_generators
from learner.interfaces import EvaluationHook, MetricsSink, Queue, WeightSink
from learner.report import group_metrics, memory_metrics, queue_metrics, update_metrics
from learner.update import UpdatePlan, Updater, UpdateResult, reduce_over_ranks
from rollout.adapter import adapter_checksum, serialise_adapter
from rollout.decoder import load_decoder
from rollout.groups import Group, read_group
from rollout.policy import load_policy
from rollout.samplers import pairs_possible
from rollout.versions import AdapterVersion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Where the loop ended."""

    counters: Counters
    finished: bool
    """False when the queue was closed before the last batch."""


def train(
    rank: int,
    world: int,
    config: AtelierConfig,
    queue: Queue,
    mailbox: WeightSink,
    metrics: MetricsSink,
    *,
    device: torch.device,
    resume_from: Path | None = None,
    evaluate: EvaluationHook | None = None,
) -> TrainResult:
    """Train until `learner.max_batches`, or until the queue is closed, on an initialised process group of `world`.

    `resume_from` is a committed checkpoint. Raises CheckpointError for a checkpoint of another run, DataError for rows
    that cannot be used, FloatingPointError once `learner.max_nonfinite_batches` updates were skipped, and whatever
    queue, mailbox and telemetry raise.
    """
    run = _Rank(rank, world, config, queue, mailbox, metrics, device)
    run.start(resume_from)
    last = config.learner.max_batches
    while run.counters.batch < last:
        # Take: this rank's share of the next global batch
        groups = run.take()
        if groups is None:
            break

        # Update: U optimiser steps
        gathered = run.gather(groups)
        for plan in run.updater.plan(split_updates(groups, config.run.seed, config.learner.updates_per_batch)):
            lr = learning_rate(config.learner.optimizer, run.counters.step, run.total_steps)
            result = run.updater.run(groups, plan, lr, step=run.counters.step) if plan.global_pairs else None
            run.count_step(result, plan, lr)
        batch = run.count_batch(gathered)

        # Checkpoint
        if batch == last or batch % config.checkpoint.every_batches == 0:
            run.save()

        # Publish, evaluate
        if batch == last or batch % _publish_every(config) == 0:
            published = run.publish()
            every = config.evaluation.every_batches
            if evaluate is not None and published is not None and every and batch % every == 0 and batch < last:
                evaluate(*published)
    run.finish()
    return TrainResult(run.counters, finished=run.counters.batch >= last)


class _Rank:
    """What one rank holds, and the phases that are more than a call."""

    def __init__(
        self,
        rank: int,
        world: int,
        config: AtelierConfig,
        queue: Queue,
        mailbox: WeightSink,
        metrics: MetricsSink,
        device: torch.device,
    ) -> None:
        seed_generators(config.run.seed + rank)
        self.counters = Counters()
        self._rank, self._world, self._config, self._device = rank, world, config, device
        self._queue, self._mailbox, self._metrics = queue, mailbox, metrics
        reference = config.learner.reference_side == "learner"
        self._policy = load_policy(
            config.model, config.noise, device, seed=config.run.seed, network_only=True, reference=reference
        )
        self._engine = build_engine(self._policy, config.learner)
        pixel = pixel_of(config.learner.objective) is not None
        decoder = load_decoder(config.model, device) if pixel else None
        self.updater = Updater(self._policy, self._engine, config.learner, world, seed=config.run.seed, decoder=decoder)
        self.total_steps = config.learner.max_batches * config.learner.updates_per_batch
        online = isinstance(config.data, OnlineData)
        self.pairs_possible = pairs_possible(config, self._policy.schedule) if online else 1
        history = getattr(config.learner.objective, "prompt_history", 0)
        self._rewards = PromptRewards(history) if history else None
        self._attempt = 0
        self._published: Counters | None = None
        self._saved: Counters | None = None
        self._pairs = 0
        self._batch_began = self._taken = time.monotonic()

    def start(self, resume_from: Path | None) -> None:
        """Begin or resume. Weights are published first: then the queue may ask for groups of their version."""
        queue_state: bytes | None = None
        if resume_from is not None:
            self.counters, queue_state = load_checkpoint(
                resume_from, self._config, engine=self._engine, policy=self._policy, rank=self._rank
            )
            if self._rewards is not None:
                self._rewards.load_state_dict((resume_from / REWARDS).read_bytes())
        if self._rank == 0:
            latest = self._mailbox.latest_version()
            self._attempt = 0 if latest is None else latest.attempt + 1
        self.publish()
        if self._rank == 0:
            self._queue.expect(self._policy.latent_shape)
            self._queue.load_state_dict(queue_state)
            if self._attempt > 0 or resume_from is not None:
                self._metrics.resume_at(self.counters.step)
        torch.distributed.barrier()
        if resume_from is None:
            self.save()  # a learner that is lost early comes back here
        else:
            self._saved = self.counters
        self._batch_began = time.monotonic()

    def take(self) -> list[Group] | None:
        """This rank's groups of the next batch; None on every rank once the queue is closed. Collective.

        Raises DataError on every rank when one of them cannot use its share of a data set.
        """
        payloads, fault = None, None
        try:
            payloads = self._queue.take(self.counters.batch, self._rank, self._world, self.counters.step)
        except DataError as error:
            fault = str(error)
        self._taken = time.monotonic()
        here = [-1.0 if fault else float(payloads is not None)]
        (everywhere,) = reduce_over_ranks(here, torch.distributed.ReduceOp.MIN, self._device)
        if everywhere < 0:
            raise DataError(first_fault(fault))
        if not (payloads and everywhere):
            return None
        groups = [read_group(payload) for payload in payloads]
        return groups if self._rewards is None else self._rewards.normalise(groups)

    def gather(self, groups: Sequence[Group]) -> dict[str, float]:
        """What the ranks' groups are like. A data set's have neither rewards nor an age. Collective."""
        gathered = group_metrics(groups, self.counters.step, self.pairs_possible, self._device)
        if isinstance(self._config.data, OnlineData):
            return gathered
        return {tag: value for tag, value in gathered.items() if tag.startswith("pairs/")}

    def count_step(self, result: UpdateResult | None, plan: UpdatePlan, lr: float) -> None:
        """One optimiser step is over: report it, and refuse one too many that was not finite. Collective then."""
        skipped = result is not None and result.skipped
        self.counters = replace(
            self.counters, step=self.counters.step + 1, skipped_updates=self.counters.skipped_updates + skipped
        )
        self._pairs += plan.global_pairs
        if self._rank == 0:
            self._metrics.scalars(self.counters.step, update_metrics(result, plan.global_pairs, lr))
        if result is not None and result.skipped:
            _refuse_nonfinite(self.counters, result, self._config.learner.max_nonfinite_batches)

    def count_batch(self, gathered: Mapping[str, float]) -> int:
        """One batch is over: retire and report it. Returns the number of batches trained."""
        self.counters = replace(self.counters, batch=self.counters.batch + 1)
        if self._rank == 0:
            self._queue.retire(self.counters.batch - 1)
            now = time.monotonic()
            own = {
                "pairs/skipped_updates": self.counters.skipped_updates,
                "throughput/batches": self.counters.batch,
                "throughput/pairs_per_sec": self._pairs / (now - self._batch_began),
                "throughput/wait_sec": self._taken - self._batch_began,
                "throughput/update_sec": now - self._taken,
            }
            parts = (gathered, own, queue_metrics(self._queue.stats()), memory_metrics(self._device))
            self._metrics.scalars(self.counters.step, {tag: value for part in parts for tag, value in part.items()})
        self._pairs, self._batch_began = 0, time.monotonic()
        return self.counters.batch

    def save(self) -> None:
        """Commit a checkpoint. Collective."""
        state = self._queue.state_dict() if self._rank == 0 else None
        save_checkpoint(
            self._config.run.path,
            self.counters,
            self._config,
            engine=self._engine,
            policy=self._policy,
            rank=self._rank,
            queue_state=state,
            rewards_state=None if self._rewards is None else self._rewards.state_dict(),
        )
        self._saved = self.counters

    def publish(self) -> tuple[AdapterVersion, bytes] | None:
        """Publish the trained weights from rank 0, which returns them. Collective."""
        self._published = self.counters
        adapter = gather_trained(self._engine, self._policy, here=self._rank == 0)
        if adapter is None:
            return None
        version = AdapterVersion(self.counters.step, self.counters.batch, self._attempt, adapter_checksum(adapter))
        state = serialise_adapter(adapter)
        self._mailbox.publish(version, state)
        return version, state

    def finish(self) -> None:
        """Save and publish what an early end left unsaved and unpublished. Collective."""
        if self._saved != self.counters:
            self.save()
        if self._published != self.counters:
            self.publish()


def _publish_every(config: AtelierConfig) -> int:
    schedule = config.schedule
    return schedule.publish_every_batches if isinstance(schedule, AsyncSchedule) else 1


def _refuse_nonfinite(counters: Counters, result: UpdateResult, limit: int) -> None:
    """Log a skipped update with its pairs from all ranks; raise FloatingPointError at the limit. Collective."""
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, result.offenders)
    named = [source for part in everyone for source in part]
    cause = f"loss for {', '.join(named[:4])}" if named else f"gradient (norm {result.grad_norm})"
    message = (
        f"step {counters.step}: non-finite {cause}; this update was skipped, "
        f"{counters.skipped_updates} so far (learner.max_nonfinite_batches is {limit})"
    )
    logger.error(message)
    if counters.skipped_updates >= limit:
        raise FloatingPointError(message)
