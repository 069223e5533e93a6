"""Results as the page reads them: from files to means, intervals and spreads.

A value of a row is the mean over its seeds. Where there is one seed, its interval comes from the pictures (paired with
the untrained model's, same captions and seeds); where there are several, its spread is their standard deviation.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rollout.intervals import Interval, paired_difference
from tests.benchmarks.ablations.cells import START, Cell

Result = Mapping[str, Any]


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All results in `folder`, by file name. Raises ValueError naming a file that is not one."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            result["cell"], result["seed"], result["key"], result["curve"], result["final"]["metrics"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{path}: not a cell's result ({error}); remove it and the cell is run again") from error
        found.append(result)
    return found


@dataclass(frozen=True)
class Row:
    """A cell's results over its seeds, beside the untrained model's."""

    results: Sequence[Result]
    start: Result

    @property
    def seeds(self) -> list[int]:
        return [result["seed"] for result in self.results]

    def values(self, metric: str) -> list[float]:
        """One for each seed."""
        return [result["final"]["metrics"][metric] for result in self.results]

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.values(metric))

    def spread(self, metric: str) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        return deviation(self.values(metric))

    def before(self, metric: str) -> float:
        return float(self.start["final"]["metrics"][metric])

    def change(self, metric: str) -> float:
        return self.mean(metric) - self.before(metric)

    def interval(self, metric: str) -> Interval | None:
        """95 % interval of the change over pictures, for one seed and a measure that is kept picture by picture."""
        before = self.start["final"]["per_picture"]
        if len(self.results) != 1 or metric not in before:
            return None
        after = self.results[0]["final"]["per_picture"][metric]
        return paired_difference([float(v) for v in before[metric]], [float(v) for v in after])

    def spent(self, name: str = "evaluations") -> float:
        """Mean over seeds of what was computed in all."""
        return statistics.fmean(result["final"][name] for result in self.results)

    def curve(self, metric: str) -> list[Point]:
        """From the untrained model to the end of the budget, on the pictures that are drawn on the way."""
        points = [Point(0.0, float(self.start["curve"][0]["metrics"][metric]), None)]
        for at in zip(*(result["curve"] for result in self.results), strict=True):
            values = [float(point["metrics"][metric]) for point in at]
            evaluations = statistics.fmean(point["evaluations"] for point in at)
            points.append(Point(evaluations, statistics.fmean(values), deviation(values)))
        return points


@dataclass(frozen=True)
class Point:
    """Of a learning curve: means over seeds, and the value's standard deviation where there are several."""

    evaluations: float
    value: float
    spread: float | None


def deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def row_of(cell: Cell, results: Sequence[Result]) -> Row | None:
    """The cell's row; None where it, or the untrained model, has no result."""
    own = sorted((r for r in results if r["cell"] == cell.name), key=lambda r: r["seed"])
    start = [r for r in results if r["cell"] == START.name]
    return Row(own, start[0]) if own and start else None


def evaluations_to(row: Row, metric: str, gain: float) -> float | None:
    """Evaluations after which the metric's mean first lies `gain` above the start, between points linearly; None where
    it does not within the budget."""
    curve = row.curve(metric)
    goal = curve[0].value + gain
    for low, high in pairwise(curve):
        if high.value >= goal:
            part = (goal - low.value) / (high.value - low.value)
            return low.evaluations + part * (high.evaluations - low.evaluations)
    return None
