"""What every scorer promises: pictures (or noisy latents), prompts and timesteps in, one float32 score a row out.

Shapes: B batch, C H W picture (C = 3) or latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Reads = Literal["pixels", "latent"]


@runtime_checkable
class Scorer(Protocol):
    """Scores pictures, or noisy latents, against their prompts: higher is better, among those of one prompt."""

    @property
    def name(self) -> str:
        """What was used, with version and preprocessing: it labels every metric made from these scores."""
        ...

    @property
    def reads(self) -> Reads:
        """`pixels`: decoded x̂0 in [-1, 1]; `latent`: the noisy latent. The sampler does no more than this needs."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        """float32 [B] for images float [B, C, H, W], B prompts and timesteps int64 [B] (0: a clean picture)."""
        ...

    def to(self, device: torch.device | str) -> Scorer:
        """Move to a device, in place; returns itself."""
        ...


def check_inputs(images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> None:
    """Refuse what breaks the contract of `Scorer.score`.

    Raises ValueError naming the argument, what it is and what it has to be.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images is {images.dtype} {list(images.shape)}; a scorer takes floating point [B, C, H, W]")
    batch = images.shape[0]
    if len(prompts) != batch:
        raise ValueError(f"{len(prompts)} prompts for {batch} images; give each image its prompt")
    if timesteps.dtype != torch.int64 or tuple(timesteps.shape) != (batch,):
        raise ValueError(
            f"timesteps is {timesteps.dtype} {list(timesteps.shape)}; a scorer takes int64 [{batch}], one an image"
        )
