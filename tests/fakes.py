"""Hand-written fakes: simple but real implementations of the small interfaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


class RedScorer:
    """A scorer that likes red: scale * mean of the first channel. Counts its calls."""

    name = "red-1"
    reads: Literal["pixels", "latent"] = "pixels"

    def __init__(self, scale: float = 100.0) -> None:
        self.scale = scale
        self.timesteps_seen: list[int] = []

    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        assert len(images) == len(prompts) == len(timesteps)
        self.timesteps_seen += timesteps.tolist()
        return self.scale * images[:, 0].float().mean(dim=(1, 2))

    def to(self, device: torch.device | str) -> RedScorer:
        return self
