"""What an evaluation found, without torch: the driver and whoever records it need no model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rollout.contact_sheet import grid
from rollout.intervals import Interval, paired_difference

REWARD = "reward"  # the metric of the scorer in use, beside those that the measures name


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation found."""

    metrics: dict[str, float]
    """`reward` and the measures, each the mean over pictures."""
    per_picture: dict[str, list[float]]
    """The same names, one value a picture."""
    images: np.ndarray
    """uint8 [N, h, w, 3]"""
    prompts: tuple[str, ...]
    statistics: dict[str, float] = field(default_factory=dict)
    """`appearance/` and `diversity/` of these pictures."""
    drift: dict[str, float] = field(default_factory=dict)
    """The same names: change from the starting model."""
    scorer: str = ""
    """Full name of the scorer in use, whose mean is `reward`."""
    seconds: float = 0.0
    """How long it took."""

    def scalars(self) -> dict[str, float]:
        """The metrics and the drift as TensorBoard tags.

        The reward in use comes twice: as `eval/reward`, the curve to look at, and under its scorer's full name, so that
        it shares a chart with other runs that hold this scorer out.
        """
        named = {self.scorer: self.metrics[REWARD]} if self.scorer else {}
        return {**{f"eval/{name}": value for name, value in {**self.metrics, **named}.items()}, **self.drift}

    def grid(self, count: int) -> bytes:
        """A PNG of the first `count` pictures with their prompts."""
        return grid(self.images[:count], self.prompts[:count])


def differences(before: EvalResult, after: EvalResult) -> dict[str, Interval]:
    """after - before of every metric, paired picture by picture, with its 95 % interval."""
    return {name: paired_difference(before.per_picture[name], after.per_picture[name]) for name in before.metrics}
