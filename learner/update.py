"""One optimiser step: the pairs of an update, in micro-batches, through policy, objective and engine, on all ranks.

    pairs ─► collate ─► means of policy and reference ─► log p ─► objective ─► Σ loss · world / global pairs ─► backward
                            (one evaluation where both halves share x_t)                        last one ─► clip, step

Shapes: M rows of a micro-batch, C H W latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from configs.learner import LearnerSection
from learner.batching import PairBatch, PairIndex, collate, split_micro_batches
from learner.engine import accumulate, apply_update
from learner.objectives import OBJECTIVES
from rollout.conditioning import Conditioning
from rollout.policy import DiffusionPolicy
from rollout.records import PreferenceGroup
from rollout.transition import log_prob, transition

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
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
    offenders: tuple[str, ...]
    """Prompt and seed of this rank's pairs with a non-finite loss."""

    @property
    def skipped(self) -> bool:
        return not math.isfinite(self.grad_norm)


class Updater:
    """Policy, engine and objective of one rank."""

    def __init__(self, policy: DiffusionPolicy, engine: Any, settings: LearnerSection, world: int) -> None:
        self._policy = policy
        self._engine = engine
        self._settings = settings
        self._world = world
        self._objective = build_objective(settings)

    def plan(self, dealt: Sequence[list[PairIndex]]) -> list[UpdatePlan]:
        """Agree with the other ranks on pair counts and on the number of forward passes. Collective."""
        local = [len(pairs) for pairs in dealt]
        micro = [math.ceil(pairs / self._settings.micro_batch_pairs) for pairs in local]
        totals = reduce_over_ranks(local, torch.distributed.ReduceOp.SUM, self._policy.device)
        passes = reduce_over_ranks(micro, torch.distributed.ReduceOp.MAX, self._policy.device)
        plans = zip(dealt, totals, passes, strict=True)
        return [UpdatePlan(list(pairs), int(total), int(count)) for pairs, total, count in plans]

    def run(self, groups: Sequence[PreferenceGroup], plan: UpdatePlan, lr: float) -> UpdateResult:
        """Train on one update that has pairs. Collective.

        A non-finite loss or gradient anywhere makes every rank skip the step, with weights and optimiser unchanged.
        """
        sums: dict[str, Tensor] = {}
        offenders: list[str] = []
        parts = split_micro_batches(plan.pairs, plan.micro_batches)
        for place, part in enumerate(parts):
            batch = collate(groups, part, self._policy.device, int(self._policy.schedule.timesteps[-1]))
            losses, metrics = self._evaluate(batch, offenders)
            loss = (losses * batch.weight).sum() * self._world / plan.global_pairs
            accumulate(self._engine, loss, last=place == len(parts) - 1)
            _add(sums, {"loss": losses.detach(), **metrics}, batch.weight)
            _add(sums, _buckets(batch.timestep), batch.weight)
        grad_norm = apply_update(self._engine, lr)
        means = reduce_means(sums, plan.global_pairs, self._policy.device)
        return UpdateResult(means, grad_norm, tuple(offenders))

    def _evaluate(self, batch: PairBatch, offenders: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        win, lose = pair_log_probs(self._policy, batch, pair_means(self._policy, batch, self._engine))
        with torch.no_grad():
            ref_win, ref_lose = pair_log_probs(self._policy, batch, self._reference_means(batch))
        losses, metrics = self._objective(win, lose, ref_win, ref_lose)
        bad = ~torch.isfinite(losses)
        if bool(bad.any()):
            offenders += [source for source, is_bad in zip(batch.sources, bad.tolist(), strict=True) if is_bad]
            # A clamp between loss and log-probability stops a NaN on its way back. Give such a loss a NaN gradient,
            # so that the gradient norm, which every rank sees, tells all of them to skip this update.
            losses = torch.where(bad, (win + lose) * math.nan, losses)
        return losses, metrics

    def _reference_means(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        if self._settings.reference_at == "learner":
            with self._policy.reference():
                return pair_means(self._policy, batch)
        if batch.ref_mean_win is None:
            raise ValueError("groups came without reference means although learner.reference_at is worker")
        return batch.ref_mean_win, batch.ref_mean_win if batch.ref_mean_lose is None else batch.ref_mean_lose


def build_objective(settings: LearnerSection) -> Objective:
    """The configured loss with its constants filled in."""
    constants = settings.objective.model_dump(exclude={"type"})
    return partial(OBJECTIVES[settings.objective.type], **constants)


def pair_means(policy: DiffusionPolicy, batch: PairBatch, network: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Means [M, C, H, W] of winner's and loser's transition: one evaluation of M rows, or of 2 M where x_t differs."""
    x, t, conditioning = batch.x_t, batch.timestep, batch.conditioning
    if batch.x_t_lose is not None:
        x, t = torch.cat([x, batch.x_t_lose]), torch.cat([t, t])
        conditioning = Conditioning.concatenate([conditioning, conditioning])
    output = policy.predict(x, t, conditioning, network=network)
    mean = transition(policy.schedule, output, x, t).mean
    if batch.x_t_lose is None:
        return mean, mean
    win, lose = mean.chunk(2)
    return win, lose


def pair_log_probs(policy: DiffusionPolicy, batch: PairBatch, means: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """log p [M] of winner and loser under Gaussians of these means."""
    std = policy.schedule.sigma(batch.timestep).reshape(-1, 1, 1, 1)
    return log_prob(batch.x_prev_win, means[0], std), log_prob(batch.x_prev_lose, means[1], std)


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
