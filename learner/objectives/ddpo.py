"""Denoising diffusion policy optimisation: the clipped policy gradient of every transition (arXiv:2305.13301, eq. 7).

    L = max(-a r, -a clamp(r, 1 - clip, 1 + clip)),   r = exp(log p_theta - log p_old),  a = clamp(advantage)

log p is the mean over elements, for which the clip range is stated. Shapes: R transitions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ddpo_loss(
    logp: Tensor, behaviour_logp: Tensor, advantage: Tensor, *, clip: float, advantage_clamp: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each transition [R] (not reduced) and metrics [R]; all inputs are float [R].

    Metrics: `ratio/policy`, and `ratio/clamped` (1 where the clamped term is in force, which has no gradient).
    """
    clamped_advantage = advantage.clamp(-advantage_clamp, advantage_clamp)
    ratio = torch.exp(logp - behaviour_logp)
    plain = -clamped_advantage * ratio
    limited = -clamped_advantage * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        metrics = {"ratio/policy": ratio.detach(), "ratio/clamped": (limited > plain).float()}
    return torch.maximum(plain, limited), metrics
