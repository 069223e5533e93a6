"""How far the model's pictures have moved from the starting model's, same prompts and seeds, and how far is too far.

Shapes: N pictures, uint8 [N, h, w, 3].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from configs.statistics import STATISTICS

if TYPE_CHECKING:
    from torch import Tensor

    from reward.diversity import Embedder


def picture_statistics(
    images: np.ndarray, prompts: Sequence[str], embed: Embedder, batch_size: int
) -> dict[str, float]:
    """Appearance (means over pictures, and of the set) and diversity, as tags of `configs.statistics`.

    Raises ValueError where pictures and prompts differ in number.
    """
    single: dict[str, list[float]] = {}
    for part in _parts(images, batch_size):
        for tag, values in picture_appearance(part).items():
            single.setdefault(tag, []).extend(values.tolist())
    found = {tag: sum(values) / len(values) for tag, values in single.items()}
    return {**found, **set_appearance(images, batch_size), **set_diversity(images, prompts, embed, batch_size)}


def picture_appearance(pixels: Tensor) -> dict[str, Tensor]:
    """The statistics of single pictures as tags: float32 [B] of pixels [B, 3, h, w] in [-1, 1]."""
    from reward.appearance import appearance

    return {f"appearance/{name}": values for name, values in appearance(pixels).items()}


def set_appearance(images: np.ndarray, batch_size: int) -> dict[str, float]:
    """What only a set of pictures has: its palette, as tags."""
    import torch

    from reward.appearance import palette_statistics, palettes

    shares = torch.cat([palettes(part) for part in _parts(images, batch_size)])
    return {f"appearance/{name}": value for name, value in palette_statistics(shares).items()}


def set_diversity(images: np.ndarray, prompts: Sequence[str], embed: Embedder, batch_size: int) -> dict[str, float]:
    """Within and across prompts, as tags. Raises ValueError where pictures and prompts differ in number."""
    import torch

    from reward.diversity import diversity

    embeddings = torch.cat([embed(part).cpu() for part in _parts(images, batch_size)])
    return {f"diversity/{name}": value for name, value in diversity(embeddings, prompts).items()}


def _parts(images: np.ndarray, batch_size: int) -> Iterator[Tensor]:
    """float32 [B, 3, h, w] in [-1, 1] of uint8 [N, h, w, 3], batch by batch."""
    import torch

    for start in range(0, len(images), batch_size):
        yield torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2).float() / 127.5 - 1


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """after − before of every statistic."""
    return {tag: after[tag] - before[tag] for tag in before}


def over_limits(limits: Mapping[str, float], latest: Mapping[str, float]) -> list[str]:
    """A sentence for each change that is larger, either way, than its limit."""
    return [
        f"{tag} has changed by {latest[tag]:+.4g} (limit {limits[tag]:g})"
        for tag in STATISTICS
        if tag in limits and tag in latest and abs(latest[tag]) > limits[tag]
    ]


def exceeded(limits: Mapping[str, float], latest: Mapping[str, float]) -> str | None:
    """Why a run stops: changes beyond what `evaluation.stop_on_drift` allows; None where there is none."""
    over = over_limits(limits, latest)
    if not over:
        return None
    return (
        f"drift from the starting model: {'; '.join(over)}. evaluation.stop_on_drift asked to stop here; "
        f"the checkpoint is kept, and a run that resumes goes on only with a higher limit"
    )
