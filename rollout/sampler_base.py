"""What every sampler has: the policy, its counters, the reference's means and the fields that every group shares.

Shapes: B prompts, T pairs, K candidates, C H W latent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rollout.conditioning import Conditioning
from rollout.policy import DiffusionPolicy
from rollout.prompts import PromptItem
from rollout.transition import transition


@dataclass
class SamplerCounters:
    """Work done so far, for throughput."""

    network_evaluations: int = 0
    """Latents through the network, guidance's two halves counted as one."""
    scored_candidates: int = 0


@dataclass(frozen=True)
class Stamp:
    """Who sampled a group, with which adapter."""

    policy_step: int
    adapter_sha256: str
    worker: str


class PolicySampler:
    """Base of the samplers. No Ray inside."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        self.counters = SamplerCounters()
        self._policy = policy

    def _predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.counters.network_evaluations += len(x)
        return self._policy.predict(x, t, conditioning)

    def _times(self, rows: int, timestep: int) -> Tensor:
        return torch.full((rows,), timestep, dtype=torch.int64, device=self._policy.device)

    def _reference_mean(self, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The frozen base's means, float32 [T, C, H, W] on the CPU, at states [T, C, H, W] of one prompt."""
        if len(x_t) == 0:
            return x_t.cpu()
        x, t = x_t.to(self._policy.device), timestep.to(self._policy.device)
        with self._policy.reference():
            output = self._predict(x, t, conditioning.repeat(len(x)))
        return transition(self._policy.schedule, output, x, t).mean.cpu()


def shared_fields(item: PromptItem, stamp: Stamp, conditioning: Conditioning, row: int) -> dict[str, Any]:
    """`GroupRecord`'s fields but for the scores, of prompt `item`, whose conditioning is row `row` of its batch's."""
    prompt = {"ordinal": item.ordinal, "prompt": item.prompt, "seed": item.seed}
    return {**prompt, **asdict(stamp), "conditioning": conditioning.row(row)}
