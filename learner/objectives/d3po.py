"""D3PO: SPO's pair loss on every step of two whole trajectories (arXiv:2311.13231, eq. 12).

The winner's trajectory is the one whose finished picture is preferred; its n-th step is paired with the loser's n-th.
The loss on a pair of steps is SPO's, with D3PO's own beta; what differs is what is paired. Shapes: T pairs of steps.
"""

from __future__ import annotations

from torch import Tensor

from learner.objectives.spo import spo_loss


def d3po_loss(
    logp_win: Tensor, logp_lose: Tensor, ref_logp_win: Tensor, ref_logp_lose: Tensor, *, beta: float, clip: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics [T] as `spo_loss` gives them. All inputs are float32 [T]."""
    return spo_loss(logp_win, logp_lose, ref_logp_win, ref_logp_lose, beta=beta, clip=clip)
