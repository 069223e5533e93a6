"""The five linear layers (or one) that LAION's aesthetic predictor and ImageReward end in: no activation in between.

Names as published: `layers.{0,2,4,6,7}.{weight,bias}`; the numbers between are dropout, which evaluation leaves out.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from reward.weights_file import load_strict

POSITIONS = (0, 2, 4, 6, 7)


class ScoreHead(nn.Module):
    """[B, D] → [B]; widths are read off the weights (published: D → 1024 → 128 → 64 → 16 → 1)."""

    def __init__(self, state: dict[str, Tensor], source: str, prefix: str = "") -> None:
        """Raises ValueError naming `source` where names or shapes are not those of such a head.

        `prefix`: what the names begin with in the file.
        """
        super().__init__()
        weights = [state.get(f"layers.{position}.weight") for position in POSITIONS]
        known = [weight for weight in weights if weight is not None and weight.ndim == 2]
        if len(known) != len(POSITIONS):
            raise ValueError(
                f"{source} is not a score head: layers.{{0,2,4,6,7}}.weight are wanted, has {_some(state)}"
            )
        chained = all(after.shape[1] == before.shape[0] for before, after in pairwise(known))
        if not chained or known[-1].shape[0] != 1:
            shapes = ", ".join(str(list(weight.shape)) for weight in known)
            raise ValueError(f"{source} is not a score head: its layers {shapes} do not follow on one another to 1")
        self.layers = nn.ModuleDict(
            {str(at): nn.Linear(w.shape[1], w.shape[0]) for at, w in zip(POSITIONS, known, strict=True)}
        )
        self.width = int(known[0].shape[1])
        load_strict(self, state, source, lambda name: prefix + name)

    def forward(self, features: Tensor) -> Tensor:
        """[B] of features [B, D]."""
        for layer in self.layers.values():
            features = layer(features)
        return features[:, 0]


def _some(state: dict[str, Tensor]) -> str:
    return ", ".join(sorted(state)[:5]) or "nothing"
