"""A weighted sum of scorers: Σ wᵢ · (sᵢ − cᵢ) / dᵢ, with centre c and spread d to bring them to one scale.

Known taste: that of its parts, each as its own file says. A mixture averages tastes; whose, its name lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward.base import Reads, Scorer
from reward.frozen import check_scores


@dataclass(frozen=True)
class Part:
    """One scorer and how it counts."""

    scorer: Scorer
    weight: float
    centre: float = 0.0
    spread: float = 1.0


class Mixture:
    """`Scorer` over others that read the same; named by all of them with their weights."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Raises ValueError where there is no part, or parts read different things."""
        if not parts:
            raise ValueError("a mixture has no parts; give at least one")
        kinds = {part.scorer.reads for part in parts}
        if len(kinds) > 1:
            raise ValueError(f"a mixture's parts read {' and '.join(sorted(kinds))}; they have to read the same")
        self._parts = list(parts)
        self.reads: Reads = parts[0].scorer.reads
        self.name = "mixture" + "".join(_label(part) for part in parts)

    def to(self, device: torch.device | str) -> Mixture:
        """Move every part to a device, in place; returns itself."""
        for part in self._parts:
            part.scorer.to(device)
        return self

    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        """float32 [B]; raises whatever a part raises, and FloatingPointError for a part's score that is not finite."""
        total: Tensor | None = None
        for part in self._parts:
            scores = check_scores(part.scorer.score(images, prompts, timesteps).float(), prompts, part.scorer.name)
            term = part.weight * (scores - part.centre) / part.spread
            total = term if total is None else total + term
        assert total is not None
        return total


def _label(part: Part) -> str:
    scale = "" if (part.centre, part.spread) == (0.0, 1.0) else f"(x{-part.centre:+g})/{part.spread:g} "
    return f"{part.weight:+g}*[{scale}{part.scorer.name}]"
