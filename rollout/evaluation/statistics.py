"""How sure a mean over pictures is: bootstrap intervals, paired differences, win rates.

Pictures of one prompt (`--repeats`) are not independent: their values are averaged first, and prompts are counted.
Shares (every value 0 or 1) and win rates get closed intervals instead: a bootstrap of ten wins in ten has no width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rollout.intervals import Interval, are_shares, share_difference, wilson

RESAMPLES = 10_000


def bootstrap_mean(values: Sequence[float], prompts: Sequence[str], *, seed: int = 0) -> Interval:
    """Mean with its 95 % percentile bootstrap interval (Efron 1979) over prompts; n counts prompts.

    Raises ValueError when there is no value or their number is not that of the prompts.
    """
    by_prompt = per_prompt(values, prompts)
    if are_shares(values):
        return wilson(math.fsum(by_prompt) / len(by_prompt), len(by_prompt))
    return _bootstrap(np.asarray(by_prompt, dtype=np.float64), seed)


def bootstrap_difference(
    before: Sequence[float], after: Sequence[float], prompts: Sequence[str], *, seed: int = 0
) -> Interval:
    """Mean of after - before, paired by picture, with its 95 % interval. Errors as `bootstrap_mean`."""
    first, second = per_prompt(before, prompts), per_prompt(after, prompts)
    if are_shares(before) and are_shares(after):
        return share_difference([b - a for a, b in zip(first, second, strict=True)])
    return _bootstrap(np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64), seed)


@dataclass(frozen=True)
class WinRate:
    """Pictures on which a candidate scores above, equal to and below the base."""

    wins: int
    ties: int
    losses: int
    interval: Interval
    """(wins + ties / 2) / pictures, with Wilson's 95 % interval (ties make it too wide, not too narrow)."""


def win_rate(base: Sequence[float], other: Sequence[float], prompts: Sequence[str]) -> WinRate:
    """How often `other` beats `base` on the same prompt and seed. Errors as `bootstrap_mean`."""
    groups = len(per_prompt(base, prompts))
    per_prompt(other, prompts)
    wins = sum(b > a for a, b in zip(base, other, strict=True))
    ties = sum(b == a for a, b in zip(base, other, strict=True))
    return WinRate(wins, ties, len(base) - wins - ties, wilson((wins + ties / 2) / len(base), groups))


def per_prompt(values: Sequence[float], prompts: Sequence[str]) -> list[float]:
    """The mean of each prompt's values, in the order in which prompts appear first."""
    if len(values) != len(prompts) or not values:
        raise ValueError(f"{len(values)} values for {len(prompts)} pictures; each picture has one, and one is needed")
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        groups.setdefault(prompt, []).append(value)
    return [math.fsum(group) / len(group) for group in groups.values()]


def _bootstrap(values: np.ndarray, seed: int) -> Interval:
    """values float64 [n]"""
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [values[generator.integers(0, n, (count, n))].mean(axis=1) for count in _parts(RESAMPLES, 1_000_000 // n + 1)]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(mean, float(low), float(high), n)


def _parts(total: int, size: int) -> list[int]:
    """`total` in parts of at most `size`, so that large evaluations do not hold all resamples at once."""
    return [min(size, total - start) for start in range(0, total, size)]
