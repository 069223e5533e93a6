"""Step-wise preferences of one prompt: what travels from rollout to learner for SPO, MSPO and D3PO.

Shapes: T pairs kept, S scored steps, K candidates, C H W latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rollout.group_record import GroupRecord

if TYPE_CHECKING:
    from torch import Tensor

_LATENTS = ("x_t", "x_prev_win", "x_prev_lose")
_OPTIONAL_LATENTS = ("x_t_lose", "ref_mean_win", "ref_mean_lose")
_PER_PAIR = ("score_win", "score_lose", "behaviour_logp_win", "behaviour_logp_lose")


@dataclass(frozen=True, eq=False, kw_only=True)
class PreferenceGroup(GroupRecord):
    """Pairs of transitions that the scorer told apart."""

    KEY: ClassVar[str] = "group"
    WHAT: ClassVar[str] = "preference group"
    ROWS: ClassVar[str] = "x_prev_win"
    OPTIONAL: ClassVar[tuple[str, ...]] = _OPTIONAL_LATENTS

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
    score_timesteps: Tensor
    """int64 [S]: the timestep at which each row of `scores` was scored; the last is 0 (finished pictures), unless the
    sampler is set to stop earlier."""

    def check(self) -> None:
        shape = tuple(self.x_prev_win.shape)
        for name in (*_LATENTS, *(name for name in _OPTIONAL_LATENTS if getattr(self, name) is not None)):
            self.check_tensor(name, "float32", shape)
        for name in _PER_PAIR:
            self.check_tensor(name, "float32", shape[:1])
        self.check_tensor("timestep", "int64", shape[:1])
        self.check_tensor("score_timesteps", "int64", tuple(self.scores.shape[:1]))
        if self.x_t_lose is not None and self.ref_mean_win is not None and self.ref_mean_lose is None:
            raise ValueError("ref_mean_lose is missing although the halves have different x_t")
