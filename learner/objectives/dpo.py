"""Diffusion-DPO: the pair's errors against those of the frozen base (arXiv:2311.12908, eq. 14).

    L = -log sigmoid(-beta/2 [(A_win - A_lose) - (A_win_ref - A_lose_ref)])

A is a picture's *mean* squared error, all four with the same noise and timestep; beta is 5000 for that. In the pixel
paper's eq. 4, sums take the place of means and beta / 2 is written beta. It starts at ln 2. Shapes: T pairs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from learner.objectives.pair_metrics import pair_metrics


def dpo_loss(
    error_win: Tensor, error_lose: Tensor, ref_error_win: Tensor, ref_error_lose: Tensor, *, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each pair [T] (not reduced) and metrics [T]; errors are float [T].

    Metrics: see `pair_metrics`; accuracy counts pairs whose margin has grown over the reference's.
    """
    baseline = (ref_error_win - ref_error_lose).detach()
    margin = (error_win - error_lose) - (ref_error_win - ref_error_lose)
    return -F.logsigmoid(-0.5 * beta * margin), pair_metrics(error_win, error_lose, baseline)
