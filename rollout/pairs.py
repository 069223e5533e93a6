"""From scored candidates to win-lose pairs.

Shapes: B prompts, K candidates, n block length, C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rollout.sampling import PromptNoise


@dataclass(frozen=True)
class Block:
    """n transitions of K branches that left one shared state."""

    timesteps: list[int]
    """n timesteps that the transitions leave."""
    x_t: list[Tensor]
    """n tensors [B, K, C, H, W]; the first holds the shared state K times."""
    x_prev: list[Tensor]
    """n tensors [B, K, C, H, W]"""
    logp: list[Tensor]
    """n tensors [B, K]: log p of each transition under the policy that drew it."""
    scores: Tensor
    """[B, K] at the block's end."""
    scored_at: int
    threshold: float


@dataclass
class PairList:
    """The pairs of one prompt, in the order of time."""

    x_t_win: list[Tensor] = field(default_factory=list)
    x_t_lose: list[Tensor] = field(default_factory=list)
    x_prev_win: list[Tensor] = field(default_factory=list)
    x_prev_lose: list[Tensor] = field(default_factory=list)
    logp_win: list[Tensor] = field(default_factory=list)
    logp_lose: list[Tensor] = field(default_factory=list)
    timestep: list[int] = field(default_factory=list)
    score_win: list[Tensor] = field(default_factory=list)
    score_lose: list[Tensor] = field(default_factory=list)

    def append(self, block: Block, row: int, win: int, lose: int) -> None:
        """Add the n pairs of branches `win` and `lose` of prompt `row`."""
        for j, timestep in enumerate(block.timesteps):
            self.timestep.append(timestep)
            self.score_win.append(block.scores[row, win])
            self.score_lose.append(block.scores[row, lose])
            for half, branch in (("win", win), ("lose", lose)):
                getattr(self, f"x_t_{half}").append(block.x_t[j][row, branch])
                getattr(self, f"x_prev_{half}").append(block.x_prev[j][row, branch])
                getattr(self, f"logp_{half}").append(block.logp[j][row, branch])


def collect_pairs(block: Block, rule: str, noise: PromptNoise, pairs: Sequence[PairList]) -> None:
    """Append each prompt's pair where softmax([s_win, s_lose]) differs by more than the block's threshold."""
    for row, (win, lose) in enumerate(choose_pairs(block.scores, rule, noise)):
        margin = block.scores[row, [win, lose]].softmax(0)
        if float(margin[0] - margin[1]) > block.threshold:
            pairs[row].append(block, row, win, lose)


def choose_pairs(scores: Tensor, rule: str, noise: PromptNoise) -> list[tuple[int, int]]:
    """(win, lose) of each prompt by `best_worst`, or by `random`: two distinct candidates, the better one wins."""
    if rule == "best_worst":
        return list(zip(scores.argmax(1).tolist(), scores.argmin(1).tolist(), strict=True))
    k = scores.shape[1]
    first, gap = noise.integers(k), noise.integers(k - 1)
    couples = [(a, (a + 1 + b) % k) for a, b in zip(first, gap, strict=True)]
    return [(a, b) if scores[row, a] >= scores[row, b] else (b, a) for row, (a, b) in enumerate(couples)]


def column(values: Sequence[Tensor]) -> Tensor:
    """Scalars as float32 [T] on the CPU; T may be 0."""
    return torch.stack(list(values)).float().cpu() if values else torch.zeros(0)
