"""Supervised fine-tuning: a picture's own error (pixel paper, eq. 1; eq. 2 when decoded). Shapes: T pictures."""

from __future__ import annotations

from torch import Tensor


def sft_loss(error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each picture [T], which is its error, and the metric `error/win` [T]."""
    return error, {"error/win": error.detach()}
