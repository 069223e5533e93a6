"""SimPO for diffusion: the winner's error against the loser's, without a reference (pixel paper, eqs. 5 and 6).

    L = -log sigmoid(-beta (A_win - A_lose))

A is the error of one picture, already reduced over its elements: in the latent for eq. 5, of decoded pictures for
eq. 6. The total of eq. 7 is put together in `learner.objectives.pixel`. Shapes: T pairs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from learner.objectives.pair_metrics import pair_metrics


def simpo_loss(error_win: Tensor, error_lose: Tensor, *, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each pair [T] (not reduced) and metrics [T]; errors are float [T]. Equal errors cost ln 2.

    Metrics: see `pair_metrics`.
    """
    return -F.logsigmoid(-beta * (error_win - error_lose)), pair_metrics(error_win, error_lose)
