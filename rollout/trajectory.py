"""Whole trajectories: K of each prompt, with the reward of the finished picture (DDPO, D3PO).

    prompt ─► K seeds ─► K whole samplings, every transition kept ─► decode ─► reward ─┬─► rows with advantages   DDPO
                                                                                       └─► best and worst in pairs D3PO

Shapes: B prompts, K trajectories, N steps, C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.rollout import TrajectorySampler as TrajectorySettings
from reward.base import Scorer
from rollout.conditioning import Conditioning
from rollout.policy import DiffusionPolicy
from rollout.prompts import PromptItem
from rollout.records import PreferenceGroup
from rollout.sampler_base import PolicySampler, Stamp, shared_fields
from rollout.sampling import PromptNoise, picture_seed
from rollout.scoring import score_finished
from rollout.trajectory_records import TrajectoryGroup
from rollout.transition import log_prob, transition

_STD_FLOOR = 1e-6  # as in DDPO's released code


@dataclass(frozen=True)
class Walk:
    """Every transition of one prompt's trajectories, on the CPU."""

    x: Tensor
    """float32 [K, N + 1, C, H, W]: states from noise to picture."""
    logp: Tensor
    """float32 [K, N]"""
    rewards: Tensor
    """float32 [K]"""


class TrajectorySampler(PolicySampler):
    """Walks trajectories and labels them by their finished pictures. No Ray inside."""

    def __init__(
        self,
        policy: DiffusionPolicy,
        scorer: Scorer,
        settings: TrajectorySettings,
        *,
        as_pairs: bool,
        reference: bool = False,
    ) -> None:
        """`as_pairs`: pairs of whole trajectories (D3PO) instead of rows with advantages (DDPO).

        `reference`: also evaluate the frozen base at every pair (`learner.reference_at: worker`).
        """
        super().__init__(policy)
        self._scorer = scorer
        self._settings = settings
        self._as_pairs = as_pairs
        self._reference = reference

    @torch.no_grad()
    def sample(
        self, items: Sequence[PromptItem], *, policy_step: int, adapter_sha256: str, worker: str
    ) -> list[TrajectoryGroup] | list[PreferenceGroup]:
        """One group for each prompt; each depends on its own prompt and seed and on the policy alone."""
        conditioning = self._policy.encode([item.prompt for item in items])
        walks = self._walk(items, conditioning)
        stamp = Stamp(policy_step, adapter_sha256, worker)
        numbered = list(enumerate(zip(items, walks, strict=True)))
        if self._as_pairs:
            return [self._pair(item, stamp, walk, conditioning, row) for row, (item, walk) in numbered]
        return [self._rows(item, stamp, walk, conditioning, row) for row, (item, walk) in numbered]

    def _walk(self, items: Sequence[PromptItem], conditioning: Conditioning) -> list[Walk]:
        policy, k = self._policy, self._settings.num_trajectories
        seeds = [picture_seed(item.seed, number) for item in items for number in range(k)]
        noise = PromptNoise(seeds, policy.latent_shape, policy.device)
        repeated = conditioning.repeat(k)
        x = noise.draw()
        states, logps = [x.cpu()], []
        for step in policy.schedule.timesteps.tolist():
            t = self._times(len(x), step)
            move = transition(policy.schedule, self._predict(x, t, repeated), x, t)
            x = move.sample(noise.draw())
            states.append(x.cpu())
            logps.append(log_prob(x, move.mean, move.std).cpu())
        texts = [item.prompt for item in items for _ in range(k)]
        rewards = score_finished(policy, self._scorer, x, texts)
        self.counters.scored_candidates += len(rewards)
        all_x, all_logp = torch.stack(states, dim=1), torch.stack(logps, dim=1)
        parts = [slice(start, start + k) for start in range(0, len(seeds), k)]
        return [Walk(all_x[part], all_logp[part], rewards[part]) for part in parts]

    def _rows(
        self, item: PromptItem, stamp: Stamp, walk: Walk, conditioning: Conditioning, row: int
    ) -> TrajectoryGroup:
        k, n = walk.logp.shape
        return TrajectoryGroup(
            **shared_fields(item, stamp, conditioning, row),
            x_t=walk.x[:, :-1].flatten(0, 1),
            x_prev=walk.x[:, 1:].flatten(0, 1),
            timestep=self._policy.schedule.timesteps.repeat(k),
            behaviour_logp=walk.logp.flatten(),
            advantage=advantages(walk.rewards).repeat_interleave(n),
            scores=walk.rewards[None],
            final_score=float(walk.rewards.mean()),
        )

    def _pair(
        self, item: PromptItem, stamp: Stamp, walk: Walk, conditioning: Conditioning, row: int
    ) -> PreferenceGroup:
        """The best trajectory against the worst, step by step; no pair where all rewards are equal."""
        win, lose = int(walk.rewards.argmax()), int(walk.rewards.argmin())
        steps = slice(0, len(self._policy.schedule.timesteps) if walk.rewards[win] > walk.rewards[lose] else 0)
        timestep = self._policy.schedule.timesteps[steps]
        x_win, x_lose = walk.x[win, :-1][steps].clone(), walk.x[lose, :-1][steps].clone()  # overlap what follows them
        one = conditioning.rows(slice(row, row + 1))
        return PreferenceGroup(
            **shared_fields(item, stamp, conditioning, row),
            x_t=x_win,
            x_t_lose=x_lose,
            x_prev_win=walk.x[win, 1:][steps],
            x_prev_lose=walk.x[lose, 1:][steps],
            timestep=timestep,
            ref_mean_win=self._reference_mean(x_win, timestep, one) if self._reference else None,
            ref_mean_lose=self._reference_mean(x_lose, timestep, one) if self._reference else None,
            score_win=walk.rewards[win].repeat(len(timestep)),
            score_lose=walk.rewards[lose].repeat(len(timestep)),
            behaviour_logp_win=walk.logp[win][steps],
            behaviour_logp_lose=walk.logp[lose][steps],
            scores=walk.rewards[None],
            score_timesteps=torch.zeros(1, dtype=torch.int64),
            final_score=float(walk.rewards.mean()),
        )


def advantages(rewards: Tensor) -> Tensor:
    """float32 [K]: rewards of one prompt less their mean, over their population deviation (plus 1e-6)."""
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + _STD_FLOOR)
