"""Whole sampling trajectories of one prompt with their rewards: what policy-gradient objectives (DDPO) read.

A row is one transition of one trajectory; rows are ordered by trajectory, then by time, and each carries its own
trajectory's advantage. D3PO labels two whole trajectories, which is a `PreferenceGroup` with two states a pair.
Shapes: R = K N rows, K trajectories, N steps, C H W latent; `scores` is [1, K].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rollout.group_record import GroupRecord

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class TrajectoryGroup(GroupRecord):
    """K whole trajectories."""

    KEY: ClassVar[str] = "trajectory_group"
    WHAT: ClassVar[str] = "group of trajectories"
    ROWS: ClassVar[str] = "x_t"

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

    def check(self) -> None:
        shape = tuple(self.x_t.shape)
        for name in ("x_t", "x_prev"):
            self.check_tensor(name, "float32", shape)
        for name in ("behaviour_logp", "advantage"):
            self.check_tensor(name, "float32", shape[:1])
        self.check_tensor("timestep", "int64", shape[:1])
