"""Held-out measures of pictures.

A measure maps pictures float32 [N, 3, h, w] in [-1, 1] and their N prompts to named values float32 [N], one a picture;
a yes-or-no measure gives 1 or 0, so that its mean is a share. Nothing here is ever trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rollout.miniature.judge import Judge, judge_captions
from rollout.miniature.world import FINISHES

Measure = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]

_JUDGED = {"caption": "core", "shape": "shape", "colour": "colour", "background": "background", "position": "position"}


def judge_measure() -> Measure:
    """The miniature's judge: share of each finish, and of pictures that show what the caption asks for.

    `judge/caption` is shape, colour and background right together, in every object; the attributes follow one by one.
    Raises ValueError for a prompt outside the miniature's grammar.
    """
    judge = Judge()

    def measure(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        verdicts = judge_captions(images, list(prompts), judge)
        values = {f"judge/{name}": [bool(v[key]) for v in verdicts] for name, key in _JUDGED.items()}
        values |= {f"judge/{finish}": [v["finish"] == finish for v in verdicts] for finish in FINISHES}
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}

    return measure


MEASURES: dict[str, Callable[[], Measure]] = {"judge": judge_measure}
"""`evaluation.measures` name -> its factory."""
