"""From `rollout.sampler.type` to what rolls prompts out, and how much a rollout can give."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from configs.rollout import FinalPairsSampler as FinalPairsSettings
from configs.rollout import StepwiseSampler as StepwiseSettings
from configs.rollout import TrajectorySampler as TrajectorySettings
from reward import Scorer, build_scorer
from rollout.final_pairs import FinalPairsSampler, Ranking, Weighted
from rollout.interfaces import GroupSampler
from rollout.policy import DiffusionPolicy
from rollout.stepwise import StepwiseSampler, plan_blocks
from rollout.trajectory import TrajectorySampler
from rollout.transition import NoiseSchedule

if TYPE_CHECKING:
    from configs.schema import AtelierConfig


def build_sampler(
    config: AtelierConfig,
    policy: DiffusionPolicy,
    device: torch.device | str,
    *,
    scorer_from: Callable[[Any, torch.device | str], Scorer] = build_scorer,
) -> GroupSampler:
    """The configured sampler with its scorers, each made by `scorer_from` (its settings, `device`)."""
    settings = config.rollout.sampler
    scorer = scorer_from(config.rollout.scorer, device)
    reference = config.learner.reference_side == "worker"
    if isinstance(settings, StepwiseSettings):
        return StepwiseSampler(policy, scorer, settings, reference=reference)
    if isinstance(settings, TrajectorySettings):
        as_pairs = config.learner.objective.type == "d3po"
        return TrajectorySampler(policy, scorer, settings, as_pairs=as_pairs, reference=reference)
    more = [Weighted(scorer_from(part.scorer, device), part.weight) for part in settings.mixture]
    flaws = None if settings.flaws is None else scorer_from(settings.flaws, device)
    ranking = Ranking([Weighted(scorer, 1.0), *more], flaws, settings.flaw_tolerance, settings.min_margin)
    return FinalPairsSampler(policy, ranking, settings)


def pairs_possible(config: AtelierConfig, schedule: NoiseSchedule) -> int:
    """Training units of a group if none fell below the threshold."""
    settings = config.rollout.sampler
    if isinstance(settings, FinalPairsSettings):
        return 1
    if isinstance(settings, TrajectorySettings):
        steps = len(schedule.timesteps)
        return steps if config.learner.objective.type == "d3po" else steps * settings.num_trajectories
    _, blocks = plan_blocks(schedule, settings.kappa, settings.min_timestep, settings.block_length)
    return sum(map(len, blocks))
