"""The decoder's memory, counted on tensors without data: the formula of docs/objectives.md holds."""

from __future__ import annotations

import pytest

from configs.pixel_memory import pixel_term_bytes
from tests.benchmarks.pixel_memory import peak_bytes


@pytest.mark.parametrize("side", [256, 512])
def test_peak_follows_the_formula(side):
    assert peak_bytes(side, 2) == pytest.approx(pixel_term_bytes(side, 2), rel=0.02)


def test_more_pictures_cost_only_themselves():
    grown = peak_bytes(128, 8) - peak_bytes(128, 2)
    assert grown < 6 * 3 * 3 * 4 * 128**2, "far less than an activation each"
    assert peak_bytes(128, 8, checkpointed=False) > 10 * peak_bytes(128, 8)
