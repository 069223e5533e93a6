"""How sure a mean over pictures is: means and paired differences with their two-sided 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959964  # 97.5 % point of the standard normal: two-sided 95 %


@dataclass(frozen=True)
class Interval:
    """A mean over `n` pictures with its two-sided 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def wilson(share: float, n: int) -> Interval:
    """A share of n independent cases with Wilson's (1927) 95 % interval."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The mean of after - before over the same prompts and seeds, in the same order.

    Shares get the interval of Agresti and Min (2005), Wald's with half a picture added to each of the four outcomes:
    unlike the plain one it is not of zero width when every picture changes the same way. Other values: paired normal.
    Raises ValueError when the lengths differ or are 0.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before but {len(after)} after; they are paired picture by picture")
    n, differences = _count(before), [b - a for a, b in zip(before, after, strict=True)]
    if not are_shares([*before, *after]):
        return _normal(differences, math.fsum(differences) / n)
    return share_difference(differences)


def share_difference(differences: Sequence[float]) -> Interval:
    """The mean of n paired differences of shares, each in -1..1, with Agresti and Min's interval."""
    n = _count(differences)
    mean = math.fsum(differences) / n
    total, changed = math.fsum(differences), math.fsum(d * d for d in differences) + 1
    centre = total / (n + 2)
    half = _Z * math.sqrt(max(0.0, changed - total**2 / (n + 2))) / (n + 2)
    return Interval(mean, max(-1.0, centre - half), min(1.0, centre + half), n)


def _count(values: Sequence[float]) -> int:
    if not values:
        raise ValueError("no values: a mean over no pictures does not exist")
    return len(values)


def are_shares(values: Sequence[float]) -> bool:
    """Whether every value is 0 or 1."""
    return all(value in (0.0, 1.0) for value in values)


def _normal(values: Sequence[float], mean: float) -> Interval:
    """mean ± z · s / √n; one value says nothing about its spread."""
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf, len(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = _Z * math.sqrt(variance / len(values))
    return Interval(mean, mean - half, mean + half, len(values))
