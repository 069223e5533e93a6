"""Intervals of means over pictures: numbers worked out by hand, and coverage of the bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rollout.evaluation.statistics import bootstrap_difference, bootstrap_mean, per_prompt, win_rate
from rollout.intervals import paired_difference, wilson


def prompts(count: int) -> list[str]:
    return [f"prompt {n}" for n in range(count)]


def test_bootstrap_of_a_large_sample_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    found = bootstrap_mean(values.tolist(), prompts(400))
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean()) and found.n == 400
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert found == bootstrap_mean(values.tolist(), prompts(400)), "seeded"


def test_bootstrap_of_two_values_by_hand() -> None:
    """Resamples of {0, 10}: mean 0, 5, 10 with probability 1/4, 1/2, 1/4."""
    found = bootstrap_mean([0.0, 10.0], prompts(2))
    assert (found.mean, found.low, found.high) == (5.0, 0.0, 10.0)


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        found = bootstrap_mean(generator.exponential(1.0, 50).tolist(), prompts(50))
        covered += found.low <= 1.0 <= found.high
    assert 50 <= covered <= 60


def test_a_difference_is_paired() -> None:
    before = np.random.default_rng(3).normal(0, 10, 100)
    after = before + 0.5 + np.random.default_rng(4).normal(0, 0.1, 100)
    found = bootstrap_difference(before.tolist(), after.tolist(), prompts(100))
    assert 0.4 < found.low < found.mean < found.high < 0.6


def test_shares_get_the_closed_intervals() -> None:
    ones = [1.0] * 10
    assert bootstrap_mean(ones, prompts(10)).low == pytest.approx(10 / (10 + 1.959964**2))
    assert bootstrap_difference([0.0] * 10, ones, prompts(10)) == paired_difference([0.0] * 10, ones)


def test_shares_over_several_pictures_of_a_prompt_keep_the_closed_intervals() -> None:
    """Prompts are counted, not pictures; the same change everywhere is no proof of none anywhere else."""
    texts = prompts(8) * 2
    halves = [1.0] * 8 + [0.0] * 8
    assert bootstrap_mean(halves, texts) == wilson(0.5, 8)
    found = bootstrap_difference(halves, halves, texts)  # (0 ± 1.96 √1) / 10
    assert (found.mean, found.n) == (0.0, 8) and found.high == -found.low == pytest.approx(0.1959964)


def test_pictures_of_one_prompt_are_averaged_first() -> None:
    texts = ["a", "b", "a", "b"]
    assert per_prompt([1.0, 5.0, 3.0, 7.0], texts) == [2.0, 6.0]
    found = bootstrap_mean([1.0, 5.0, 3.0, 7.0], texts)
    assert (found.mean, found.low, found.high, found.n) == (4.0, 2.0, 6.0, 2)


def test_one_prompt_says_nothing_about_its_spread() -> None:
    found = bootstrap_mean([3.5], ["a"])
    assert found.mean == 3.5 and found.low == -math.inf and found.high == math.inf
    with pytest.raises(ValueError, match="2 values for 1 pictures"):
        bootstrap_mean([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_mean([], [])


def test_win_rate_counts_ties_half() -> None:
    found = win_rate([1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 0.0, 3.0], prompts(4))
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.interval.mean == 0.625 and found.interval.n == 4


def test_wilson_by_hand() -> None:
    """8 of 10: (0.8 + 3.8415/20 ± 1.96 √(0.016 + 3.8415/400)) / 1.38415 = 0.4902 .. 0.9433 (Brown et al. 2001)."""
    found = wilson(0.8, 10)
    assert found.low == pytest.approx(0.4902, abs=5e-4) and found.high == pytest.approx(0.9433, abs=5e-4)
    assert wilson(1.0, 10).low == pytest.approx(10 / (10 + 1.959964**2))
    assert wilson(1.0, 10).high == pytest.approx(1.0)
