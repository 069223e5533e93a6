"""Which trained weights are which. Free of torch, so that the pool's process is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterVersion:
    """Which trained weights these are: an adapter's, or the whole network's."""

    step: int
    """Optimiser steps taken."""
    batch: int
    """Global batches trained when it was published: the batch that it samples under `schedule: sync`."""
    attempt: int
    """Starts of the learner before this one; higher after every restart."""
    sha256: str
    """`adapter_checksum` of the adapter."""

    @property
    def order(self) -> tuple[int, int]:
        """Later versions compare greater, restarts included."""
        return self.attempt, self.batch


def in_force(published: Iterable[AdapterVersion]) -> list[AdapterVersion]:
    """Those of the published versions (oldest first) that groups may carry.

    A learner that goes back to a checkpoint publishes an earlier batch again: what came after it is taken back.
    """
    standing: list[AdapterVersion] = []
    for version in published:
        standing = [*(earlier for earlier in standing if earlier.batch < version.batch), version]
    return standing
