"""What the losses on errors of finished pairs report alike. Shapes: T pairs."""

from __future__ import annotations

from torch import Tensor


def pair_metrics(error_win: Tensor, error_lose: Tensor, baseline: Tensor | float = 0.0) -> dict[str, Tensor]:
    """`error/win`, `error/lose`, and `pairs/accuracy`: 1 where winner minus loser lies below `baseline` (all [T])."""
    win, lose = error_win.detach(), error_lose.detach()
    return {"error/win": win, "error/lose": lose, "pairs/accuracy": (win - lose < baseline).float()}
