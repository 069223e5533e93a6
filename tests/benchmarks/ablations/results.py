"""Results as the page reads them: from files to means, intervals and spreads.

A value of a row is the mean over its seeds. Where there is one seed, its interval comes from the pictures (paired with
the untrained model's, same captions and seeds); where there are several, its spread is their standard deviation.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
            result["cell"], result["seed"], result["key"], result["points"][-1]["metrics"]
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

    def values(self, metric: str, point: int = -1) -> list[float]:
        """One for each seed."""
        return [result["points"][point]["metrics"][metric] for result in self.results]

    def mean(self, metric: str, point: int = -1) -> float:
        return statistics.fmean(self.values(metric, point))

    def spread(self, metric: str, point: int = -1) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        values = self.values(metric, point)
        return statistics.stdev(values) if len(values) > 1 else None

    def before(self, metric: str) -> float:
        return float(self.start["points"][0]["metrics"][metric])

    def change(self, metric: str, point: int = -1) -> float:
        return self.mean(metric, point) - self.before(metric)

    def interval(self, metric: str) -> Interval | None:
        """95 % interval of the change over pictures, for one seed and a measure that is kept picture by picture."""
        (before,) = self.start["points"]
        if len(self.results) != 1 or metric not in before["per_picture"]:
            return None
        after = self.results[0]["points"][-1]["per_picture"][metric]
        return paired_difference([float(v) for v in before["per_picture"][metric]], [float(v) for v in after])

    def spent(self, name: str = "evaluations", point: int = -1) -> float:
        """Mean over seeds of what was computed up to a point."""
        return statistics.fmean(result["points"][point][name] for result in self.results)

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """Evaluations and the metric's mean, from the untrained model to the end of the budget."""
        points = range(min(len(result["points"]) for result in self.results))
        spent = [0.0, *(self.spent(point=point) for point in points)]
        return spent, [self.before(metric), *(self.mean(metric, point) for point in points)]


def row_of(cell: Cell, results: Sequence[Result]) -> Row | None:
    """The cell's row; None where it, or the untrained model, has no result."""
    own = sorted((r for r in results if r["cell"] == cell.name), key=lambda r: r["seed"])
    start = [r for r in results if r["cell"] == START.name]
    return Row(own, start[0]) if own and start else None


def evaluations_to(row: Row, metric: str, gain: float) -> float | None:
    """Evaluations after which the metric's mean first lies `gain` above the start, between points linearly; None where
    it does not within the budget."""
    spent, values = row.curve(metric)
    goal = values[0] + gain
    for index in range(1, len(values)):
        low, high = values[index - 1], values[index]
        if high >= goal:
            return spent[index - 1] + (goal - low) / (high - low) * (spent[index] - spent[index - 1])
    return None
