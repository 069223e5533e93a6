"""Finished latents of one prompt: win-lose pairs, or single ones (captioned pictures). From rollouts or from data sets.

Noise and timestep are not in the record: the learner draws them (`learner.noising`), the same for both halves.
Shapes: T pairs (or pictures), S scorers, K pictures, C H W latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rollout.record_bytes import check_scores, check_tensor, nbytes_of, pack, tensors_of, unpack
from rollout.records import GroupHeader

if TYPE_CHECKING:
    from torch import Tensor

FINAL_KEY = "final_group"
_FORMAT_VERSION = 1
_OPTIONAL = ("z_lose", "score_lose")


@dataclass(frozen=True, eq=False)
class FinalGroup:
    """Finished latents (scaled as the network sees them) of one prompt.

    From a data set: `policy_step` 0, an empty `adapter_sha256` and scores of 0 where nothing scored them.
    Raises ValueError on construction, naming the field, when a shape, dtype or value breaks the contract, and for a
    pair of two equal latents.
    """

    ordinal: int
    prompt: str
    seed: int
    policy_step: int
    adapter_sha256: str
    worker: str
    conditioning: Mapping[str, Tensor]
    """Once for all pairs; each tensor has no batch dimension."""
    z_win: Tensor
    """float32 [T, C, H, W]: the preferred latents, or the only ones."""
    z_lose: Tensor | None
    """float32 [T, C, H, W]; None for single pictures."""
    score_win: Tensor
    """float32 [T]"""
    score_lose: Tensor | None
    """float32 [T]; None exactly where `z_lose` is."""
    scores: Tensor
    """float32 [S, K]: every picture's score by each scorer, trained on or not; [0, 0] where nothing was scored."""
    final_score: float
    """Mean score of the finished pictures."""

    def __post_init__(self) -> None:
        if self.z_win.ndim != 4:
            raise ValueError(f"z_win has shape {tuple(self.z_win.shape)}; expected [T, C, H, W]")
        shape = tuple(self.z_win.shape)
        check_tensor(self, "z_win", "float32", shape)
        check_tensor(self, "score_win", "float32", shape[:1])
        if (self.z_lose is None) != (self.score_lose is None):
            raise ValueError("z_lose and score_lose come together: one of them is missing")
        if self.z_lose is not None:
            check_tensor(self, "z_lose", "float32", shape)
            check_tensor(self, "score_lose", "float32", shape[:1])
            self._refuse_equal_halves(self.z_lose)
        check_scores(self)

    def _refuse_equal_halves(self, z_lose: Tensor) -> None:
        same = (np.asarray(self.z_win) == np.asarray(z_lose)).all(axis=(1, 2, 3))
        if same.any():
            place = int(same.argmax())
            raise ValueError(
                f"pair {place} of ordinal {self.ordinal} ({self.prompt!r}) has two equal latents: there is no "
                f"preference between them; leave the pair out"
            )

    @property
    def num_pairs(self) -> int:
        """T: 0 is a valid group without a training signal."""
        return int(self.z_win.shape[0])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.z_win.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return nbytes_of(tensors_of(self))

    def header(self, nbytes: int | None = None) -> GroupHeader:
        """The header; `nbytes` is the length of the serialised form where it is known."""
        return GroupHeader(
            ordinal=self.ordinal,
            policy_step=self.policy_step,
            adapter_sha256=self.adapter_sha256,
            worker=self.worker,
            num_pairs=self.num_pairs,
            nbytes=self.nbytes if nbytes is None else nbytes,
            final_score=self.final_score,
        )

    def to_bytes(self) -> bytes:
        """Serialise: tensors as safetensors, everything else as JSON in its metadata."""
        return pack(self, FINAL_KEY, _FORMAT_VERSION)

    @classmethod
    def from_bytes(cls, data: bytes, *, arrays: bool = False) -> FinalGroup:
        """Inverse of `to_bytes`. Raises ValueError naming what is wrong with damaged or foreign bytes."""
        try:
            return cls(**unpack(data, FINAL_KEY, _FORMAT_VERSION, "group of final latents", _OPTIONAL, arrays=arrays))
        except TypeError as error:
            raise ValueError(f"group of final latents with missing or unknown fields: {error}") from error
