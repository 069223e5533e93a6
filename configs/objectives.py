"""The objectives' settings: one section a loss, told apart by `type`; some of them may carry the pixel term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from configs.base import Section


class PixelSection(Section):
    """The loss in pixel space beside the latent one, through the frozen decoder (seed paper, eqs. 2, 3, 6, 7)."""

    weight: float = 1.0
    """Lambda or mu: weight of the pixel term (paper: 8 for a DiT, 2 for the U-Net Emu). 0 leaves the term out."""
    decode: Literal["present", "x0"] = "present"
    """Where errors are decoded: at the noisy latents of the present timestep, or at predicted x0 (eq. 8, ablation)."""
    latent_weight: float = 1.0
    """Weight of the latent term: 1 for both terms, 0 for the pixel term alone."""


class SpoObjective(Section):
    """Step-wise preference optimisation (also the loss of MSPO)."""

    type: Literal["spo"] = "spo"
    beta: float = Field(10.0, gt=0)
    """Strength of the regularisation towards the reference (paper: 10)."""
    clip: float | None = Field(0.1, gt=0, lt=1)
    """Half width of the ratio's clip range (released settings: 0.1). Unset: no clip, as the paper writes the loss."""
    pixel: PixelSection | None = None
    """Also, or only, in pixel space. Unset: in the latent only."""


class SimpoObjective(Section):
    """SimPO on finished pairs: no reference (pixel paper, eqs. 5 to 7)."""

    type: Literal["simpo"] = "simpo"
    beta: float = Field(0.15, gt=0)
    """Sharpness of the preference. The paper names none: 0.15 is Diffusion-DPO's beta / 2 over a 4x64x64 latent's
    16,384 elements; with `reduction: mean` that is 2500."""
    reduction: Literal["sum", "mean"] = "sum"
    """Squared error of a picture: the squared norm that eqs. 5 and 6 write (`sum`), or its mean over elements."""
    pixel: PixelSection | None = None
    """Also, or only, in pixel space. Unset: in the latent only."""


class DpoObjective(Section):
    """Diffusion-DPO on finished pairs, against the frozen base (arXiv:2311.12908)."""

    type: Literal["dpo"] = "dpo"
    beta: float = Field(5000.0, gt=0)
    """Strength of the regularisation towards the reference, for mean errors (paper: 5000)."""
    pixel: PixelSection | None = None
    """Also, or only, in pixel space. Unset: in the latent only."""


class SftObjective(Section):
    """Supervised fine-tuning on single pictures, or on the winners of pairs (pixel paper, eqs. 1 to 3)."""

    type: Literal["sft"] = "sft"
    reduction: Literal["sum", "mean"] = "sum"
    """Squared error of a picture: the squared norm that eqs. 1 and 2 write (`sum`), or its mean over elements."""
    pixel: PixelSection | None = None
    """Also, or only, in pixel space. Unset: in the latent only."""


class MapoObjective(Section):
    """Margin-aware preference optimisation on finished pairs: no reference (arXiv:2406.06424)."""

    type: Literal["mapo"] = "mapo"
    weight: float = Field(0.1, gt=0)
    """b, weight of the margin beside the winner's error (released code: 0.1)."""
    snr: float = Field(0.5, gt=0)
    """s, signal-to-noise constant inside h (released code: 0.5)."""
    num_timesteps: int = Field(1000, ge=1)
    """T, multiplies the margin (released code: the schedule's 1000)."""


class DdpoObjective(Section):
    """Policy gradient on whole trajectories (arXiv:2305.13301)."""

    type: Literal["ddpo"] = "ddpo"
    clip: float = Field(1e-4, gt=0, lt=1)
    """Half width of the ratio's clip range, for the mean log-probability (released code: 1e-4)."""
    advantage_clamp: float = Field(5.0, gt=0)
    """Advantages, rewards normalised by their prompt's, are clamped to plus and minus this."""
    prompt_history: int = Field(16, ge=0)
    """A prompt's latest rewards over which they are normalised where it comes again (released code: 16). 0: only over
    the trajectories of one group."""


class D3poObjective(Section):
    """SPO's loss on every step of two whole trajectories, labelled by the final picture (arXiv:2311.13231)."""

    type: Literal["d3po"] = "d3po"
    beta: float = Field(0.1, gt=0)
    """Strength of the regularisation towards the reference (released settings: 0.1)."""
    clip: float | None = Field(0.1, gt=0, lt=1)
    """Half width of the ratio's clip range (released settings: 0.1). Unset: no clip, as the paper writes the loss."""


def with_default_type(name: str) -> Callable[[Any], Any]:
    """A mapping without `type` means the variant `name`: configurations need not repeat the default."""

    def fill(value: Any) -> Any:
        return {"type": name, **value} if isinstance(value, dict) else value

    return fill


Objective = Annotated[
    SpoObjective | SimpoObjective | DpoObjective | SftObjective | MapoObjective | DdpoObjective | D3poObjective,
    Field(discriminator="type"),
    BeforeValidator(with_default_type("spo")),
]


def pixel_of(objective: Section) -> PixelSection | None:
    """The objective's pixel section where it is in force: set, with a weight above 0."""
    pixel: PixelSection | None = getattr(objective, "pixel", None)
    return pixel if pixel is not None and pixel.weight > 0 else None


REFERENCES: dict[str, tuple[Literal["worker", "learner"], ...]] = {
    "spo": ("worker", "learner"),
    "d3po": ("worker", "learner"),
    "dpo": ("learner",),
    "simpo": (),
    "sft": (),
    "mapo": (),
    "ddpo": (),
}
"""Objective -> who can evaluate its reference, the default first; nobody where the loss has none."""
