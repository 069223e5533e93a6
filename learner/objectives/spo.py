"""Step-wise preference optimisation: the pair loss of SPO and MSPO (arXiv:2406.04314).

With r = exp(log p_theta - log p_ref) of one half, clamped to [1 - clip, 1 + clip] as the released code has it, or as it
is, as the paper's equation has it:

    L = -log sigmoid(beta log r_win - beta log r_lose)

It starts at exactly ln 2; its floor at beta 10 and clip 0.1 is 0.126; a pair with both ratios clamped has no gradient.
Shapes: T pairs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def spo_loss(
    logp_win: Tensor,
    logp_lose: Tensor,
    ref_logp_win: Tensor,
    ref_logp_lose: Tensor,
    *,
    beta: float,
    clip: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each pair [T] (not reduced: the caller weights by the global count) and per-pair metrics [T].

    All inputs are float32 [T]. Metrics: `ratio/win`, `ratio/lose` (before clamping), `pairs/accuracy` (1 where the
    policy has moved towards the winner) and, with a clip, `ratio/clamped` (1 where both halves are outside its range,
    so that the pair gives no gradient).
    """
    log_ratio_win, log_ratio_lose = logp_win - ref_logp_win, logp_lose - ref_logp_lose
    ratio_win, ratio_lose = log_ratio_win.exp(), log_ratio_lose.exp()
    metrics = {
        "ratio/win": ratio_win.detach(),
        "ratio/lose": ratio_lose.detach(),
        "pairs/accuracy": (ratio_win > ratio_lose).float(),
    }
    if clip is not None:
        log_ratio_win = ratio_win.clamp(1 - clip, 1 + clip).log()
        log_ratio_lose = ratio_lose.clamp(1 - clip, 1 + clip).log()
        metrics["ratio/clamped"] = (((ratio_win - 1).abs() > clip) & ((ratio_lose - 1).abs() > clip)).float()
    return -F.logsigmoid(beta * (log_ratio_win - log_ratio_lose)), metrics
