"""Finished latents of one prompt: win-lose pairs, or single ones (captioned pictures). From rollouts or from data sets.

Noise and timestep are not in the record: the learner draws them (`learner.noising`), the same for both halves.
Shapes: T pairs (or pictures), S scorers, K pictures, C H W latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rollout.group_record import GroupRecord

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class FinalGroup(GroupRecord):
    """Finished latents (scaled as the network sees them). Also refuses a pair of two equal latents.

    From a data set: `policy_step` 0, an empty `adapter_sha256`, and scores of 0 and [0, 0] where nothing scored them.
    """

    KEY: ClassVar[str] = "final_group"
    WHAT: ClassVar[str] = "group of final latents"
    ROWS: ClassVar[str] = "z_win"
    OPTIONAL: ClassVar[tuple[str, ...]] = ("z_lose", "score_lose")

    z_win: Tensor
    """float32 [T, C, H, W]: the preferred latents, or the only ones."""
    z_lose: Tensor | None
    """float32 [T, C, H, W]; None for single pictures."""
    score_win: Tensor
    """float32 [T]"""
    score_lose: Tensor | None
    """float32 [T]; None exactly where `z_lose` is."""

    def check(self) -> None:
        shape = tuple(self.z_win.shape)
        self.check_tensor("z_win", "float32", shape)
        self.check_tensor("score_win", "float32", shape[:1])
        if (self.z_lose is None) != (self.score_lose is None):
            raise ValueError("z_lose and score_lose come together: one of them is missing")
        if self.z_lose is not None:
            self.check_tensor("z_lose", "float32", shape)
            self.check_tensor("score_lose", "float32", shape[:1])
            self._refuse_equal_halves(self.z_lose)

    def _refuse_equal_halves(self, z_lose: Tensor) -> None:
        same = (np.asarray(self.z_win) == np.asarray(z_lose)).all(axis=(1, 2, 3))
        if same.any():
            place = int(same.argmax())
            raise ValueError(
                f"pair {place} of ordinal {self.ordinal} ({self.prompt!r}) has two equal latents: there is no "
                f"preference between them; leave the pair out"
            )
