"""Log-probabilities as the learner computes them, to compare with those that the sampler stamped on a group."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.batching import collate
from learner.readers.step_pairs import pair_log_probs, pair_means
from rollout.policy import DiffusionPolicy
from rollout.records import PreferenceGroup


def learner_log_probs(policy: DiffusionPolicy, group: PreferenceGroup) -> tuple[Tensor, Tensor]:
    """log p [T] of winners and losers, from the group's bytes through the learner's own code in one forward pass."""
    travelled = PreferenceGroup.from_bytes(group.to_bytes())
    pairs = [(0, pair) for pair in range(travelled.num_pairs)]
    batch = collate([travelled], pairs, policy.device, int(policy.schedule.trained_timesteps[-1]))
    with torch.no_grad():
        return pair_log_probs(policy, batch, pair_means(policy, batch))
