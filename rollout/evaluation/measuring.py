"""What `--measures` asks for: values of single pictures, statistics of all of them, and how large a change is told.

judge        the miniature's judge            single pictures
appearance   the AI look                      single pictures, and the palette of all together
diversity    within and across prompts        all together
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from configs.statistics import STATISTICS
from reward.diversity import build_embedder
from rollout.drift import over_limits, picture_appearance, set_appearance, set_diversity
from rollout.evaluation.lora import BASE, Candidate
from rollout.evaluation.scoring import Scores, SetStatistics
from rollout.measures import MEASURES, Measure

APPEARANCE, DIVERSITY = "appearance", "diversity"
CHOICES = sorted([*MEASURES, APPEARANCE, DIVERSITY])


@dataclass(frozen=True)
class Measuring:
    """Measures by what they read."""

    single: list[Measure]
    sets: list[SetStatistics]


def build_measures(
    names: Sequence[str], embedding: str, batch_size: int, device: torch.device | str = "cpu"
) -> Measuring:
    """Of `CHOICES`. `embedding`: what diversity compares (errors as `reward.diversity.build_embedder`)."""
    found = Measuring([MEASURES[name]() for name in names if name in MEASURES], [])
    if APPEARANCE in names:
        found.single.append(_appearance)
        found.sets.append(lambda images, prompts: set_appearance(images, batch_size))
    if DIVERSITY in names:
        found.sets.append(partial(set_diversity, embed=build_embedder(embedding, device), batch_size=batch_size))
    return found


def _appearance(pixels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    return picture_appearance(pixels)


def parse_limits(texts: Sequence[str], measures: Sequence[str]) -> dict[str, float]:
    """`TAG=LIMIT` of `--warn-change`. Raises ValueError naming the text and the fix."""
    limits: dict[str, float] = {}
    for text in texts:
        tag, _, number = text.partition("=")
        if tag not in STATISTICS:
            raise ValueError(f"--warn-change {text!r}: no such statistic; choose from {', '.join(STATISTICS)}")
        if (measure := tag.partition("/")[0]) not in measures:
            raise ValueError(f"--warn-change {text!r}: nothing measures it; add --measures {measure}")
        try:
            limits[tag] = float(number)
        except ValueError as error:
            raise ValueError(f"--warn-change {text!r}: expected TAG=NUMBER") from error
        if not 0 < limits[tag] < math.inf:
            raise ValueError(f"--warn-change {text!r}: the limit has to be above 0")
    return limits


def warn_of_changes(entrants: Sequence[Candidate], scores: Mapping[str, Scores], limits: Mapping[str, float]) -> None:
    """Put a warning into every LoRA whose pictures have changed from the base's by more than a limit, either way."""
    start = _means(scores[BASE])
    for entrant in entrants:
        found = _means(scores[entrant.name])
        changes = {tag: found[tag] - start[tag] for tag in limits if tag in found}
        entrant.warnings.extend(over_limits(limits, changes))


def _means(scores: Scores) -> dict[str, float]:
    return {**{tag: float(np.mean(values)) for tag, values in scores.measures.items()}, **scores.sets}
