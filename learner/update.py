"""One optimiser step: the pairs of an update, in micro-batches, through reader and engine, on all ranks.

    pairs ─► micro-batches ─► reader: rows, network, objective ─► Σ loss · world / global pairs ─► backward
                                  (learner.readers: what the objective reads)     last one ─► clip, step

"Pair" is a group's unit of training, whatever the objective: a single picture for SFT, a transition for DDPO.
Shapes: M rows of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.learner import LearnerSection
from learner.batching import PairIndex, split_micro_batches
from learner.engine import accumulate, apply_update
from learner.readers import Batch, Setting, build_reader
from rollout.decoder import PixelDecoder
from rollout.groups import Group
from rollout.policy import DiffusionPolicy

BUCKETS = ((0, 250), (250, 500), (500, 750), (750, 1000))
"""Pairs are counted by the timestep that they leave, in these ranges."""


@dataclass(frozen=True)
class UpdatePlan:
    """What the ranks have agreed on for one update."""

    pairs: list[PairIndex]
    """This rank's."""
    global_pairs: int
    """Over all ranks."""
    micro_batches: int
    """Forward passes of every rank."""


@dataclass(frozen=True)
class UpdateResult:
    """What one update did; the same on every rank but for `offenders`."""

    means: dict[str, float]
    """Loss and metrics of the objective, averaged over the update's pairs; `count/<range>` are pairs by timestep."""
    grad_norm: float
    """Before clipping; not finite when the update was skipped."""
    grad_rms_over_eps: float
    """Root mean square of the clipped gradient over AdamW's eps: towards 1 and below, eps shortens the steps."""
    offenders: tuple[str, ...]
    """Prompt and seed of this rank's pairs with a non-finite loss."""

    @property
    def skipped(self) -> bool:
        return not math.isfinite(self.grad_norm)


class Updater:
    """Policy, engine and objective of one rank."""

    def __init__(
        self,
        policy: DiffusionPolicy,
        engine: Any,
        settings: LearnerSection,
        world: int,
        *,
        seed: int,
        decoder: PixelDecoder | None = None,
    ) -> None:
        """`seed` is the run's; `decoder` is needed where the objective has a pixel term. ValueError without it."""
        self._policy = policy
        self._engine = engine
        self._settings = settings
        self._world = world
        self._trained = sum(getattr(p, "ds_numel", p.numel()) for _, p in policy.trainable_parameters())
        self._reader = build_reader(Setting(policy, settings, seed, decoder))

    def plan(self, dealt: Sequence[list[PairIndex]]) -> list[UpdatePlan]:
        """Agree with the other ranks on pair counts and on the number of forward passes. Collective."""
        local = [len(pairs) for pairs in dealt]
        micro = [math.ceil(pairs / self._settings.micro_batch_pairs) for pairs in local]
        totals = reduce_over_ranks(local, torch.distributed.ReduceOp.SUM, self._policy.device)
        passes = reduce_over_ranks(micro, torch.distributed.ReduceOp.MAX, self._policy.device)
        plans = zip(dealt, totals, passes, strict=True)
        return [UpdatePlan(list(pairs), int(total), int(count)) for pairs, total, count in plans]

    def run(self, groups: Sequence[Group], plan: UpdatePlan, lr: float, *, step: int) -> UpdateResult:
        """Train on one update that has pairs; `step` counts the optimiser steps before it. Collective.

        A non-finite loss or gradient anywhere makes every rank skip the step, with weights and optimiser unchanged.
        """
        sums: dict[str, Tensor] = {}
        offenders: list[str] = []
        parts = split_micro_batches(plan.pairs, plan.micro_batches)
        for place, part in enumerate(parts):
            batch = self._reader.collate(groups, part, step)
            losses, metrics = self._evaluate(batch, offenders)
            loss = (losses * batch.weight).sum() * self._world / plan.global_pairs
            accumulate(self._engine, loss, last=place == len(parts) - 1)
            _add(sums, {"loss": losses.detach(), **metrics}, batch.weight)
            _add(sums, _buckets(batch.timestep), batch.weight)
        grad_norm = apply_update(self._engine, lr)
        means = reduce_means(sums, plan.global_pairs, self._policy.device)
        seen = min(grad_norm, self._settings.optimizer.max_grad_norm) if math.isfinite(grad_norm) else grad_norm
        rms = seen / math.sqrt(self._trained) / self._settings.optimizer.eps
        return UpdateResult(means, grad_norm, rms, tuple(offenders))

    def _evaluate(self, batch: Batch, offenders: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        found = self._reader.evaluate(batch, self._engine)
        bad = ~torch.isfinite(found.losses)
        if not bool(bad.any()):
            return found.losses, found.metrics
        offenders += [source for source, is_bad in zip(batch.sources, bad.tolist(), strict=True) if is_bad]
        # A clamp between loss and log-probability stops a NaN on its way back. Give such a loss a NaN gradient,
        # so that the gradient norm, which every rank sees, tells all of them to skip this update.
        return torch.where(bad, found.anchor * math.nan, found.losses), found.metrics


def reduce_over_ranks(values: Sequence[float], operation: Any, device: torch.device) -> list[float]:
    """Element-wise reduction of `values` over all ranks."""
    reduced = torch.tensor(list(values), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(reduced, operation)
    return reduced.tolist()


def reduce_means(sums: Mapping[str, Tensor], count: float, device: torch.device) -> dict[str, float]:
    """Sums over all ranks divided by `count`; what is named `count/..` stays a sum."""
    names = sorted(sums)
    totals = reduce_over_ranks([float(sums[name]) for name in names], torch.distributed.ReduceOp.SUM, device)
    return {name: v if name.startswith("count/") else v / count for name, v in zip(names, totals, strict=True)}


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor], weight: Tensor) -> None:
    for name, value in values.items():
        total = (value.detach() * weight).double().sum()
        sums[name] = sums[name] + total if name in sums else total


def _buckets(timestep: Tensor) -> dict[str, Tensor]:
    return {
        f"count/t_{low:03d}_{high - 1:03d}": ((timestep >= low) & (timestep < high)).float() for low, high in BUCKETS
    }
