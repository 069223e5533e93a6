"""What the pool measures and concludes, as plain functions of numbers and a clock: throughput, stalls, autoscaling."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from configs.rollout import WorkersSection
from rollout.interfaces import ChunkReport

WINDOW_SEC = 60.0
_NEAR_EMPTY = 0.25  # of the queue's capacity
_NEAR_FULL = 0.9


class Throughput:
    """Totals since the start, and rates over the last `WINDOW_SEC` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._recent: deque[tuple[float, ChunkReport]] = deque()
        self.groups = self.network_evaluations = self.scored_candidates = 0
        self.sampling_sec = self.putting_sec = 0.0
        self.peak_memory_bytes = 0

    def add(self, report: ChunkReport) -> None:
        self._recent.append((self._clock(), report))
        self.groups += report.delivered
        self.network_evaluations += report.network_evaluations
        self.scored_candidates += report.scored_candidates
        self.sampling_sec += report.sampling_sec
        self.putting_sec += report.putting_sec
        self.peak_memory_bytes = max(self.peak_memory_bytes, report.peak_memory_bytes)

    def stats(self) -> dict[str, float]:
        now = self._clock()
        while self._recent and now - self._recent[0][0] > WINDOW_SEC:
            self._recent.popleft()
        span = max(1e-9, min(WINDOW_SEC, now - self._started))
        reports = [report for _, report in self._recent]
        return {
            "produced_groups": self.groups,
            "network_evaluations": self.network_evaluations,
            "scored_candidates": self.scored_candidates,
            "sampling_sec": self.sampling_sec,
            "putting_sec": self.putting_sec,
            "peak_memory_bytes": self.peak_memory_bytes,
            "groups_per_sec": sum(report.delivered for report in reports) / span,
            "network_evaluations_per_sec": sum(report.network_evaluations for report in reports) / span,
            "scored_candidates_per_sec": sum(report.scored_candidates for report in reports) / span,
        }


class FailureBook:
    """Workers' deaths and restarts, and which errors come too often in turn."""

    def __init__(self, max_errors: int) -> None:
        """`max_errors`: of one chunk's workers in turn, or of starting workers, before the run is to end."""
        self._max_errors = max_errors
        self._of_chunk: Counter[int] = Counter()
        self._loads = 0
        self.deaths = self.restarts = 0

    def loaded(self) -> None:
        """A worker started: earlier failures to start do not count on."""
        self._loads = 0

    def settled(self, chunk: int) -> None:
        """The chunk is in the queue."""
        self._of_chunk.pop(chunk, None)

    def load_failed(self) -> bool:
        """A worker could not start; True once that came too often."""
        self._loads += 1
        return self._loads >= self._max_errors

    def chunk_failed(self, chunk: int) -> bool:
        """A worker failed at the chunk; True once that came too often."""
        self._of_chunk[chunk] += 1
        return self._of_chunk[chunk] >= self._max_errors


class StallClock:
    """Says when the rollout side has stopped for too long with nothing else to blame."""

    def __init__(self, timeout_sec: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_sec = timeout_sec
        self._clock = clock
        self._alive_at = self._progress_at = clock()
        self._produced = -1

    def look(self, *, alive: int, produced: int | None, waits_for_learner: bool) -> str | None:
        """What is wrong, or None. `produced`: groups that the queue got so far, None while it does not answer.

        Workers that are held by a full queue, or have nothing to do before the next weights, do not stall.
        """
        now = self._clock()
        if alive:
            self._alive_at = now
        if produced is None or produced != self._produced or waits_for_learner:
            self._progress_at = now
            self._produced = self._produced if produced is None else produced
        limit = f"rollout.workers.stall_timeout_sec = {self._timeout_sec:g}"
        if now - self._alive_at > self._timeout_sec:
            return f"no rollout worker has been alive for {now - self._alive_at:.0f} s ({limit})"
        if now - self._progress_at > self._timeout_sec:
            return f"no group was produced for {now - self._progress_at:.0f} s ({limit})"
        return None


def backoff_sec(failures: int, first_sec: float, cap_sec: float) -> float:
    """How long to wait before the next start after so many failures in a row."""
    return min(cap_sec, first_sec * 2.0 ** (failures - 1))


def autoscaled(settings: WorkersSection, target: int, queue: Mapping[str, Any]) -> int:
    """One worker more while the learner waits for groups, one less while producers are held by a full queue."""
    if queue["waiting_ranks"] and queue["fill"] < _NEAR_EMPTY:
        return min(target + 1, settings.max)
    if queue["waiting_producers"] and queue["fill"] >= _NEAR_FULL:
        return max(target - 1, settings.min)
    return target
