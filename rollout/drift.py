"""How far the model's pictures have moved from the starting model's, same prompts and seeds, and how far is too far.

Shapes: N pictures, uint8 [N, h, w, 3].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from configs.statistics import STATISTICS

if TYPE_CHECKING:
    from reward.diversity import Embedder


def picture_statistics(
    images: np.ndarray, prompts: Sequence[str], embed: Embedder, batch_size: int
) -> dict[str, float]:
    """Appearance (means over pictures, and of the set) and diversity, as tags of `configs.statistics`.

    Raises ValueError where pictures and prompts differ in number.
    """
    import torch

    from reward.appearance import appearance, palette_statistics, palettes
    from reward.diversity import diversity

    single: dict[str, list[float]] = {}
    shares, embeddings = [], []
    for start in range(0, len(images), batch_size):
        part = torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2).float() / 127.5 - 1
        for name, values in appearance(part).items():
            single.setdefault(name, []).extend(values.tolist())
        shares.append(palettes(part))
        embeddings.append(embed(part).cpu())
    found = {f"appearance/{name}": sum(values) / len(values) for name, values in single.items()}
    found |= {f"appearance/{name}": value for name, value in palette_statistics(torch.cat(shares)).items()}
    found |= {f"diversity/{name}": value for name, value in diversity(torch.cat(embeddings), prompts).items()}
    return found


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """after − before of every statistic."""
    return {tag: after[tag] - before[tag] for tag in before}


def exceeded(limits: Mapping[str, float], latest: Mapping[str, float]) -> str | None:
    """A sentence where changes are larger, either way, than `evaluation.stop_on_drift` allows; None where none is."""
    over = [
        f"{tag} has changed by {latest[tag]:+.4g} (limit {limits[tag]:g})"
        for tag in STATISTICS
        if tag in limits and tag in latest and abs(latest[tag]) > limits[tag]
    ]
    if not over:
        return None
    return (
        f"drift from the starting model: {'; '.join(over)}. evaluation.stop_on_drift asked to stop here; "
        f"the checkpoint is kept, and a run that resumes goes on only with a higher limit"
    )
