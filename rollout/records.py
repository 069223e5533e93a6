"""What travels from rollout to learner: a frozen, validated record; its bytes are safetensors + JSON, never a pickle.

Shapes: T pairs kept, S scored steps, K candidates, C H W latent, L D conditioning tokens and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rollout.record_bytes import check_scores, check_tensor, nbytes_of, pack, tensors_of, unpack

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
_KEY = "group"
_LATENTS = ("x_t", "x_prev_win", "x_prev_lose")
_OPTIONAL_LATENTS = ("x_t_lose", "ref_mean_win", "ref_mean_lose")
_PER_PAIR = ("score_win", "score_lose", "behaviour_logp_win", "behaviour_logp_lose")


@dataclass(frozen=True)
class GroupHeader:
    """What the queue must know of a group without opening it."""

    ordinal: int
    policy_step: int
    adapter_sha256: str
    worker: str
    num_pairs: int
    nbytes: int
    final_score: float


@dataclass(frozen=True, eq=False)
class PreferenceGroup:
    """Everything that one prompt's rollout gave.

    Raises ValueError on construction, naming the field, when a shape, dtype or value breaks the contract.
    """

    ordinal: int
    prompt: str
    seed: int
    policy_step: int
    adapter_sha256: str
    worker: str
    conditioning: Mapping[str, Tensor]
    """Once for all pairs; each tensor has no batch dimension."""
    x_t: Tensor
    """float32 [T, C, H, W]: the state that both halves leave, or the winner's where `x_t_lose` is given."""
    x_t_lose: Tensor | None
    """float32 [T, C, H, W], None where both halves share `x_t` (block length 1)."""
    x_prev_win: Tensor
    """float32 [T, C, H, W]"""
    x_prev_lose: Tensor
    """float32 [T, C, H, W]"""
    timestep: Tensor
    """int64 [T], the timestep of `x_t`."""
    ref_mean_win: Tensor | None
    """float32 [T, C, H, W]: the reference's mean at `x_t`; None when the learner evaluates the reference."""
    ref_mean_lose: Tensor | None
    """float32 [T, C, H, W]: at `x_t_lose`; None where shared."""
    score_win: Tensor
    """float32 [T]"""
    score_lose: Tensor
    """float32 [T]"""
    behaviour_logp_win: Tensor
    """float32 [T]: log p of the winner under the policy that sampled it."""
    behaviour_logp_lose: Tensor
    """float32 [T]"""
    scores: Tensor
    """float32 [S, K]: every candidate's score, kept or not."""
    score_timesteps: Tensor
    """int64 [S]: the timestep at which each row was scored."""
    final_score: float
    """Mean score of the last candidates: finished pictures at timestep 0, unless the sampler is set to stop earlier."""

    def __post_init__(self) -> None:
        shape = tuple(self.x_prev_win.shape)
        for name in _LATENTS:
            check_tensor(self, name, "float32", shape)
        if self.x_prev_win.ndim != 4:
            raise ValueError(f"x_prev_win has shape {shape}; expected [T, C, H, W]")
        for name in _OPTIONAL_LATENTS:
            if getattr(self, name) is not None:
                check_tensor(self, name, "float32", shape)
        for name in _PER_PAIR:
            check_tensor(self, name, "float32", shape[:1])
        check_tensor(self, "timestep", "int64", shape[:1])
        check_scores(self)
        check_tensor(self, "score_timesteps", "int64", tuple(self.scores.shape[:1]))
        if self.x_t_lose is not None and self.ref_mean_win is not None and self.ref_mean_lose is None:
            raise ValueError("ref_mean_lose is missing although the halves have different x_t")

    @property
    def num_pairs(self) -> int:
        """T: pairs that passed the threshold; 0 is a valid group without a training signal."""
        return int(self.x_prev_win.shape[0])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.x_prev_win.shape[1:])

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
        return pack(self, _KEY, FORMAT_VERSION)

    @classmethod
    def from_bytes(cls, data: bytes, *, arrays: bool = False) -> PreferenceGroup:
        """Inverse of `to_bytes`. Raises ValueError naming what is wrong with damaged or foreign bytes."""
        try:
            return cls(**unpack(data, _KEY, FORMAT_VERSION, "preference group", _OPTIONAL_LATENTS, arrays=arrays))
        except TypeError as error:
            raise ValueError(f"preference group with missing or unknown fields: {error}") from error
