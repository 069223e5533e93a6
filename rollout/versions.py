"""Which adapter is which. Free of torch, so that the pool's process is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterVersion:
    """Which adapter this is."""

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
