"""Transitions of whole trajectories with advantages, for DDPO. Shapes: M transitions of a micro-batch, C H W latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learner.batching import PairIndex
from learner.readers.base import Losses, Setting, refuse_other_groups
from rollout.conditioning import Conditioning
from rollout.trajectory_records import TrajectoryGroup
from rollout.transition import log_prob, transition


@dataclass(frozen=True)
class TrajectoryBatch:
    """M transitions as rows of one forward pass."""

    x_t: Tensor
    """float32 [M, C, H, W]"""
    x_prev: Tensor
    """float32 [M, C, H, W]"""
    timestep: Tensor
    """int64 [M]"""
    behaviour_logp: Tensor
    """float32 [M]"""
    advantage: Tensor
    """float32 [M]"""
    conditioning: Conditioning
    """M rows."""
    weight: Tensor
    """float32 [M]: 1, or 0 for padding."""
    sources: tuple[str, ...]
    """Prompt and seed of each row, for messages."""


class TrajectoryReader:
    """Reads `TrajectoryGroup`s."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._policy = setting.policy
        self._objective = setting.objective

    def collate(self, groups: Sequence[TrajectoryGroup], pairs: Sequence[PairIndex], step: int) -> TrajectoryBatch:
        refuse_other_groups(groups, TrajectoryGroup, self._setting.settings.objective.type)
        device = self._policy.device
        chosen = [groups[place] for place, _ in pairs]

        def gather(field: str) -> Tensor:
            rows = [getattr(group, field)[row] for group, (_, row) in zip(chosen, pairs, strict=True)]
            return torch.stack(rows).to(device) if rows else torch.zeros(1, device=device)

        latent = torch.zeros((1, *groups[0].latent_shape), device=device)
        last = self._policy.schedule.timesteps[-1:].to(device)
        return TrajectoryBatch(
            x_t=gather("x_t") if pairs else latent,
            x_prev=gather("x_prev") if pairs else latent,
            timestep=gather("timestep") if pairs else last,
            behaviour_logp=gather("behaviour_logp"),
            advantage=gather("advantage"),
            conditioning=Conditioning.from_rows([g.conditioning for g in chosen or groups[:1]]).to(device),
            weight=torch.ones(len(pairs), device=device) if pairs else torch.zeros(1, device=device),
            sources=tuple(f"{g.prompt!r} (seed {g.seed})" for g in chosen) or ("padding",),
        )

    def evaluate(self, batch: TrajectoryBatch, network: nn.Module) -> Losses:
        schedule = self._policy.schedule
        output = self._policy.predict(batch.x_t, batch.timestep, batch.conditioning, network=network)
        move = transition(schedule, output, batch.x_t, batch.timestep)
        logp = log_prob(batch.x_prev, move.mean, move.std)
        # A row of padding has no log-probability of its own: its ratio stays 1, so that nothing overflows.
        behaviour = torch.where(batch.weight > 0, batch.behaviour_logp, logp.detach())
        losses, metrics = self._objective(logp, behaviour, batch.advantage)
        return Losses(losses, metrics, logp)
