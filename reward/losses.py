"""The loss and the accuracy of a preference model on pairs of pictures that share a prompt.

Shapes: B pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def preference_loss(
    score_a: Tensor,
    score_b: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    weights: Tensor,
    total_weight: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy of the text over its two pictures, soft labels for ties (PickScore, arXiv:2305.01569, eq. 3).

        L = Σ_i w_i · ( −y_a ln p_a − y_b ln p_b + [y_a = y_b] · ln ½ )_i / Σ_i w_i,   (p_a, p_b) = softmax(s_a, s_b)

    The ln ½ makes a tie that the model also calls a tie cost 0 instead of ln 2; it has no gradient.

    Args:
        score_a, score_b: float [B], exp(logit_scale)·cos of each picture with the prompt.
        label_a, label_b: [B], 1 and 0 for a preference, ½ and ½ for a tie.
        weights: [B], 1 / num_examples_per_prompt.
        total_weight: Σ w over the *global* batch, where this call sees one share of it. Shares then **sum** to the
            global loss; where gradients are averaged over ranks, or over accumulated micro-batches, multiply the result
            by their number. Unset: Σ w of this call.

    Returns:
        float32 scalar.

    Raises:
        ValueError: the arguments' shapes differ.
    """
    shapes = [list(x.shape) for x in (score_a, score_b, label_a, label_b, weights)]
    if score_a.ndim != 1 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"score_a, score_b, label_a, label_b, weights have shapes {shapes}; expected one shape [B]")
    log_p = F.log_softmax(torch.stack([score_a.float(), score_b.float()], dim=1), dim=1)  # [B, 2]
    is_tie = (label_a == label_b).float()
    per_pair = -label_a.float() * log_p[:, 0] - label_b.float() * log_p[:, 1] + is_tie * math.log(0.5)
    weights = weights.float()
    total = weights.sum() if total_weight is None else total_weight
    return (weights * per_pair).sum() / total


def count_correct(score_a: Tensor, score_b: Tensor, label_a: Tensor, label_b: Tensor) -> tuple[int, int]:
    """(right, counted): pairs [B] where the preferred picture scores strictly higher, among those that are not ties."""
    counted = label_a != label_b
    right = torch.where(label_a > label_b, score_a > score_b, score_b > score_a) & counted
    return int(right.sum()), int(counted.sum())
