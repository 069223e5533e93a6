"""The overlap benchmark's arithmetic."""

from __future__ import annotations

import pytest

from tests.benchmarks.evaluation_overlap import Interval, divided, ratio_interval


def test_updates_are_told_apart_by_what_they_lie_in() -> None:
    updates = [(Interval(0, 1), 0.1), (Interval(9, 11), 0.2), (Interval(11, 12), 0.3), (Interval(21, 22), 0.4)]
    assert divided(updates, [Interval(10, 20)]) == ([0.3], [0.1, 0.4]), "one that is half in counts for neither"


def test_the_ratio_is_of_medians() -> None:
    ratio, low, high = ratio_interval([2.0, 2.0, 50.0], [1.0, 1.0, 1.0])
    assert (ratio, low) == (2.0, 2.0) and high == pytest.approx(50.0)
