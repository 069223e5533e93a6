"""The training loop of the step-aware preference model: what every rank does, from top to bottom.

    rows ─► batches (frozen base: noise, predict, decode) ─► scores ─► pair loss ─► backward ... ─► update
                                                    every_steps ─► accuracy at five timesteps ─► checkpoint

Loss: cross-entropy of the text over its two pictures, soft labels for ties, each pair weighted by
1 / examples of its caption, normalised over the global batch (arXiv:2406.04314; arXiv:2305.01569, eq. 3).
Ray Train's workers call `train_preference`, and tests without Ray. Rank 0 alone writes telemetry and the model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from configs.spm import SpmConfig
from learner.agreement import on_every_rank
from learner.committed import Counters
from learner.datasets.order import OrderedReader, PairSource
from learner.datasets.pairs import open_pairs, stream_pairs
from learner.datasets.rows import DataError, PairRow, Selection, Split
from learner.engine import accumulate, apply_update, learning_rate, wrap_module
from learner.preference import checkpoint
from learner.preference.batches import PairBatches, PairTensors
from learner.preference.output import load_start, reshape_scale, write_model
from learner.report import memory_metrics
from learner.update import reduce_over_ranks
from reward.losses import count_correct, preference_loss

logger = logging.getLogger(__name__)


class MetricsSink(Protocol):
    """Telemetry as rank 0 sees it. See `learner.telemetry.Telemetry`."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def resume_at(self, step: int) -> None: ...


@dataclass(frozen=True)
class PreferenceResult:
    """Where the loop ended."""

    counters: Counters
    accuracy: dict[int, float]
    """Timestep to the share of validation pairs that the trained model orders as labelled."""
    start_accuracy: dict[int, float]
    """The same before the first step (of this call)."""


def train_preference(
    rank: int,
    world: int,
    config: SpmConfig,
    metrics: MetricsSink | None,
    *,
    device: torch.device,
    resume_from: Path | None = None,
) -> PreferenceResult:
    """Train until `training.max_steps` on an initialised process group of `world`, then write the model.

    `metrics` is rank 0's. Raises DataError for data that cannot be trained on, CheckpointError for a checkpoint of
    another run, FloatingPointError once `training.max_nonfinite_steps` steps were skipped.
    """
    run = _Rank(rank, world, config, metrics, device)
    run.resume(resume_from)
    start = latest = run.validate()
    last = run.last_step
    while run.counters.step < last:
        # Rows: this rank's share of the next global batch, and the batch's weight on all ranks
        parts, total_weight = run.take()

        # Update: one optimiser step over all parts
        run.update(parts, total_weight)

        # Validate, checkpoint
        step = run.counters.step
        if step == last or step % config.validation.every_steps == 0:
            latest = run.validate()
        if step == last or step % config.checkpoint.every_steps == 0:
            checkpoint.save(config, run.counters, run.engine, rank)
    if rank == 0:
        write_model(run.model, config)
    torch.distributed.barrier()
    return PreferenceResult(run.counters, latest, start)


class _Rank:
    """What one rank holds, and the phases that are more than a call."""

    def __init__(
        self, rank: int, world: int, config: SpmConfig, metrics: MetricsSink | None, device: torch.device
    ) -> None:
        torch.manual_seed(config.run.seed)
        self.counters = Counters()
        self._rank, self._world, self._config, self._metrics, self._device = rank, world, config, metrics, device
        self.model, tokenizer = load_start(config)
        labeller = load_start(config)[0].to(device) if config.labels.by == "scorer" else None
        self._batches = PairBatches(config, tokenizer, device, labeller)
        self._reader, self._validation = on_every_rank(self._open, DataError)
        self.model.gradient_checkpointing = config.scorer.gradient_checkpointing
        reshape_scale(self.model, 1)
        self.model.to(device).requires_grad_(True).train()
        self.engine = wrap_module(self.model, list(self.model.parameters()), config.training, device)

    @property
    def last_step(self) -> int:
        return 0 if self._config.scorer.ablation == "plain" else self._config.training.max_steps

    def resume(self, resume_from: Path | None) -> None:
        """Begin, or go on from a committed checkpoint. Collective."""
        if resume_from is None:
            return
        self.counters = checkpoint.load(resume_from, self._config, self.engine)
        training = self._config.training
        self._reader.seek(self.counters.step * training.accumulation * training.micro_batch_pairs)
        if self._metrics is not None:
            self._metrics.resume_at(self.counters.step)

    def take(self) -> tuple[list[list[PairRow]], float]:
        """Rows of each micro-batch, and the global batch's total weight. Collective."""
        training = self._config.training
        size, count = training.micro_batch_pairs, training.accumulation
        parts = on_every_rank(lambda: [self._reader.take(size) for _ in range(count)], DataError)
        own = sum(row.weight for part in parts for row in part)
        (total,) = reduce_over_ranks([own], torch.distributed.ReduceOp.SUM, self._device)
        return parts, total

    def update(self, parts: Sequence[list[PairRow]], total_weight: float) -> None:
        """One optimiser step. Collective. A non-finite gradient changes nothing but is counted."""
        began = time.monotonic()
        training, size = self._config.training, self._config.training.micro_batch_pairs
        lr = learning_rate(training.optimizer, self.counters.step, training.max_steps)
        first = self.counters.step * training.accumulation * size
        sums = [0.0, 0.0, 0.0]  # loss, right, counted
        for place, rows in enumerate(parts):
            numbers = range(first + place * size, first + (place + 1) * size)
            places = [n * self._world + self._rank for n in numbers]
            pairs = on_every_rank(partial(self._batches.make, rows, places), DataError)
            score_0, score_1 = self._scores(pairs)
            loss = preference_loss(score_0, score_1, pairs.label_0, pairs.label_1, pairs.weights, total_weight)
            accumulate(self.engine, loss * self._world, last=place == len(parts) - 1)
            right, counted = count_correct(score_0, score_1, pairs.label_0, pairs.label_1)
            sums = [sums[0] + float(loss.detach()), sums[1] + right, sums[2] + counted]
        norm = apply_update(self.engine, lr)
        loss_sum, right_sum, counted_sum = reduce_over_ranks(sums, torch.distributed.ReduceOp.SUM, self._device)
        self._count(loss_sum, norm)
        pairs_seen = len(parts) * size * self._world
        values = {
            "loss/total": loss_sum,
            "loss/lr": lr,
            "loss/grad_norm": norm,
            "pairs/trained": pairs_seen,
            "pairs/ties": pairs_seen - counted_sum,
            "pairs/accuracy": right_sum / counted_sum if counted_sum else math.nan,
            "pairs/skipped_updates": self.counters.skipped_updates,
            "throughput/pairs_per_sec": pairs_seen / (time.monotonic() - began),
        }
        self._report({**values, **memory_metrics(self._device)})

    @torch.no_grad()
    def validate(self) -> dict[int, float]:
        """Timestep to accuracy on the validation pairs, ties left out; the same on every rank. Collective."""
        self.model.eval()
        found = {}
        for timestep in self._config.validation.timesteps:
            own = on_every_rank(partial(self._count_correct, timestep), DataError)
            sums = reduce_over_ranks(own, torch.distributed.ReduceOp.SUM, self._device)
            found[timestep] = sums[0] / sums[1] if sums[1] else math.nan
        self.model.train()
        self._report({f"eval/accuracy_t{timestep:03d}": value for timestep, value in found.items()})
        return found

    def _count_correct(self, timestep: int) -> tuple[float, float]:
        """This rank's validation pairs that are ordered as labelled, and all that are no ties. Raises DataError."""
        right, counted, size = 0.0, 0.0, self._config.training.micro_batch_pairs
        for start in range(0, len(self._validation), size):
            part = self._validation[start : start + size]
            pairs = self._batches.make([row for _, row in part], [n for n, _ in part], timestep)
            score_0, score_1 = self._scores(pairs, wrapped=False)
            more = count_correct(score_0, score_1, pairs.label_0, pairs.label_1)
            right, counted = right + more[0], counted + more[1]
        return right, counted

    def _scores(self, pairs: PairTensors, *, wrapped: bool = True) -> tuple[Tensor, Tensor]:
        """Scores [B] of both pictures, in one pass."""
        module: Any = self.engine if wrapped else self.model
        images = torch.cat([pairs.images_0, pairs.images_1])
        enabled = self._config.scorer.autocast == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=enabled):
            scores = module(images, pairs.input_ids.repeat(2, 1), pairs.timesteps.repeat(2))
        score_0, score_1 = scores.float().chunk(2)
        return score_0, score_1

    def _open(self) -> tuple[OrderedReader, list[tuple[int, PairRow]]]:
        """What this rank reads, and its validation pairs. Raises DataError."""
        config, share = self._config, {"rank": self._rank, "world": self._world}
        reader = OrderedReader(
            training_pairs(config), config.run.seed, **share, window_blocks=config.data.window_blocks
        )
        return reader, list(self._validation_share())

    def _validation_share(self) -> Sequence[tuple[int, PairRow]]:
        """This rank's validation pairs with their numbers; as many as there are, at most `validation.num_pairs`."""
        reader = OrderedReader(validation_pairs(self._config), self._config.run.seed)
        count = min(self._config.validation.num_pairs, reader.epoch_rows)
        return list(enumerate(reader.take(count)))[self._rank :: self._world]

    def _count(self, loss: float, norm: float) -> None:
        skipped = not math.isfinite(norm)
        step, so_far = self.counters.step + 1, self.counters.skipped_updates + skipped
        self.counters = replace(self.counters, batch=step, step=step, skipped_updates=so_far)
        if skipped:
            limit = self._config.training.max_nonfinite_steps
            message = f"step {step}: loss {loss}, gradient norm {norm}; skipped, {so_far} so far (limit {limit})"
            logger.error(message)
            if so_far >= limit:
                raise FloatingPointError(message)

    def _report(self, values: Mapping[str, float]) -> None:
        if self._metrics is not None:
            self._metrics.scalars(self.counters.step, values)


def training_pairs(config: SpmConfig) -> PairSource:
    """The pairs that are trained on. Raises DataError."""
    held_out = config.data.held_out if config.validation.source is None else 0.0
    return _open(config, config.data.source, config.data.split, "train", held_out)


def validation_pairs(config: SpmConfig) -> PairSource:
    """The pairs that are measured on. Raises DataError."""
    if config.validation.source is not None:
        return _open(config, config.validation.source, config.validation.split, "all", 0.0)
    return _open(config, config.data.source, config.data.split, "validation", config.data.held_out)


def _open(config: SpmConfig, source: str, hub_split: str | None, split: Split, held_out: float) -> PairSource:
    data = config.data
    selection = Selection(data.where, data.only_different, split, held_out)
    if hub_split is not None:
        return stream_pairs(source, hub_split, selection, cached_groups=data.window_blocks)
    return open_pairs(source, selection, cached_groups=data.window_blocks)
