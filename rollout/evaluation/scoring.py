"""Scores and measures of stored pictures, one value a picture.

What is scored is the 8-bit picture on disk, so an evaluation that was interrupted gives the same figures as one that
was not, and anybody can repeat them from the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from reward.base import Scorer
from rollout.evaluation.pictures import to_pixels
from rollout.measures import Measure


@dataclass(frozen=True)
class Scores:
    """Values of one candidate's pictures by metric."""

    rewards: dict[str, list[float]]
    """Scorer name -> scores; higher is better."""
    measures: dict[str, list[float]]
    """Measure -> values; no direction is better by itself."""
    sets: dict[str, float] = field(default_factory=dict)
    """Statistic of all pictures together -> its value."""

    def all(self) -> dict[str, list[float]]:
        """What has one value a picture."""
        return {**self.rewards, **self.measures}


SetStatistics = Callable[[np.ndarray, Sequence[str]], dict[str, float]]
"""Pictures uint8 [N, h, w, 3] and their prompts -> statistics of all of them together."""


def check_scorers(scorers: Sequence[Scorer]) -> None:
    """Raises ValueError for a scorer that reads latents (none are stored), and for two of the same name."""
    for scorer in scorers:
        if scorer.reads != "pixels":
            raise ValueError(f"scorer {scorer.name} reads noisy latents; finished pictures need one that reads pixels")
    names = [scorer.name for scorer in scorers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"--scorers: {twice} is given twice")


@torch.no_grad()
def score_pictures(
    images: np.ndarray,
    prompts: Sequence[str],
    scorers: Sequence[Scorer],
    measures: Sequence[Measure],
    sets: Sequence[SetStatistics] = (),
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
) -> Scores:
    """Score pictures uint8 [N, h, w, 3] at timestep 0.

    Raises FloatingPointError for a value that is not finite, naming metric and prompt; nothing is replaced by 0.
    """
    found = Scores({}, {})
    for start in range(0, len(prompts), batch_size):
        texts = list(prompts[start : start + batch_size])
        pixels = to_pixels(images[start : start + batch_size])
        clean = torch.zeros(len(texts), dtype=torch.int64, device=device)
        for scorer in scorers:
            _extend(found.rewards, scorer.name, scorer.score(pixels.to(device), texts, clean), texts)
        for measure in measures:
            for name, values in measure(pixels, texts).items():
                _extend(found.measures, name, values, texts)
    for statistics in sets:
        found.sets.update(statistics(images, prompts))
    return found


def _extend(into: dict[str, list[float]], name: str, values: torch.Tensor, prompts: Sequence[str]) -> None:
    if tuple(values.shape) != (len(prompts),):
        raise ValueError(f"{name} gave values of shape {list(values.shape)} for {len(prompts)} pictures")
    for value, prompt in zip(values.tolist(), prompts, strict=True):
        if not np.isfinite(value):
            raise FloatingPointError(f"evaluation: {name} is {value} for prompt {prompt!r}")
        into.setdefault(name, []).append(value)
