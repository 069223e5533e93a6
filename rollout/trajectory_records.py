"""Whole sampling trajectories of one prompt with their rewards: what policy-gradient objectives (DDPO) read.

A row is one transition of one trajectory; rows are ordered by trajectory, then by time, and each carries its own
trajectory's advantage. D3PO labels two whole trajectories, which is a `PreferenceGroup` with two states a pair.
Shapes: R = K N rows, K trajectories, N steps, C H W latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rollout.record_bytes import check_scores, check_tensor, nbytes_of, pack, tensors_of, unpack
from rollout.records import GroupHeader

if TYPE_CHECKING:
    from torch import Tensor

TRAJECTORY_KEY = "trajectory_group"
_FORMAT_VERSION = 1
_PER_ROW = ("behaviour_logp", "advantage")


@dataclass(frozen=True, eq=False)
class TrajectoryGroup:
    """K whole trajectories of one prompt.

    Raises ValueError on construction, naming the field, when a shape, dtype or value breaks the contract.
    """

    ordinal: int
    prompt: str
    seed: int
    policy_step: int
    adapter_sha256: str
    worker: str
    conditioning: Mapping[str, Tensor]
    """Once for all rows; each tensor has no batch dimension."""
    x_t: Tensor
    """float32 [R, C, H, W]: the state that each transition leaves."""
    x_prev: Tensor
    """float32 [R, C, H, W]: the state that it reaches."""
    timestep: Tensor
    """int64 [R], the timestep of `x_t`."""
    behaviour_logp: Tensor
    """float32 [R]: log p of the transition under the policy that sampled it (mean over elements)."""
    advantage: Tensor
    """float32 [R]: the trajectory's reward, normalised over this prompt's K; not clamped yet."""
    scores: Tensor
    """float32 [1, K]: the finished pictures' rewards."""
    final_score: float
    """Their mean."""

    def __post_init__(self) -> None:
        if self.x_t.ndim != 4:
            raise ValueError(f"x_t has shape {tuple(self.x_t.shape)}; expected [R, C, H, W]")
        shape = tuple(self.x_t.shape)
        for name in ("x_t", "x_prev"):
            check_tensor(self, name, "float32", shape)
        for name in _PER_ROW:
            check_tensor(self, name, "float32", shape[:1])
        check_tensor(self, "timestep", "int64", shape[:1])
        check_scores(self)

    @property
    def num_pairs(self) -> int:
        """R: rows that can be trained on. (The queue counts a group's training rows under this name.)"""
        return int(self.x_t.shape[0])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.x_t.shape[1:])

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
        return pack(self, TRAJECTORY_KEY, _FORMAT_VERSION)

    @classmethod
    def from_bytes(cls, data: bytes, *, arrays: bool = False) -> TrajectoryGroup:
        """Inverse of `to_bytes`. Raises ValueError naming what is wrong with damaged or foreign bytes."""
        try:
            return cls(**unpack(data, TRAJECTORY_KEY, _FORMAT_VERSION, "group of trajectories", arrays=arrays))
        except TypeError as error:
            raise ValueError(f"group of trajectories with missing or unknown fields: {error}") from error
