"""Hand-written fakes: simple but real implementations of the small interfaces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
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


class HeldScorer(RedScorer):
    """Scores once the file `gate` is there; its calls from number `broken_from` on give NaN."""

    name = "held-1"

    def __init__(self, gate: str = "", broken_from: int = 1_000_000) -> None:
        super().__init__()
        self._gate, self._broken_from, self._calls = Path(gate), broken_from, 0

    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        while not self._gate.exists():  # another process makes it: no event to await
            time.sleep(0.05)
        self._calls += 1
        scores = super().score(images, prompts, timesteps)
        return scores * float("nan") if self._calls >= self._broken_from else scores
