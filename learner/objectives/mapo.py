"""Margin-aware preference optimisation, without a reference (arXiv:2406.06424; checked against its released code).

    L = A_win - b log sigmoid(T [h(A_win) - h(A_lose)]),   h(x) = s x / (exp(s x) - 1)

A is a picture's *mean* squared error. h falls from 1 at x = 0, so a smaller error of the winner makes the margin
larger. The first term keeps the model on the winner. Shapes: P pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.objectives.pair_metrics import pair_metrics


def mapo_loss(
    error_win: Tensor, error_lose: Tensor, *, weight: float, snr: float, num_timesteps: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each pair [P] (not reduced) and metrics [P]; errors are float [P], `weight` b, `snr` s.

    Metrics: see `pair_metrics`.
    """
    margin = odds(error_win, snr) - odds(error_lose, snr)
    loss = error_win - weight * F.logsigmoid(num_timesteps * margin)
    return loss, pair_metrics(error_win, error_lose)


def odds(error: Tensor, snr: float) -> Tensor:
    """h [P], exact for small errors too, where exp(s x) - 1 would lose its digits; 1 at an error of 0."""
    scaled = snr * error
    safe = torch.where(scaled == 0, torch.ones_like(scaled), scaled)
    return torch.where(scaled == 0, 1 - scaled / 2, safe / torch.expm1(safe))
