"""The console's progress line: one line that rewrites itself on a terminal, one line now and then in a job's log.

step 120/400 · batch 30/100 · reward 21.420 · 35.2 pairs/s · clamped 4% · queue 50% · stale 3.1 · 2 workers · ETA 9s
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

PROGRESS_TAGS = {
    "batch": "throughput/batches",
    "reward": "reward/final_mean",
    "pairs_per_sec": "throughput/pairs_per_sec",
    "clamped_share": "ratio/clamped_share",
    "queue_fill": "queue/fill",
    "staleness_steps": "weights/staleness_steps",
    "workers": "throughput/workers",
}
"""Field of the progress line -> the scalar that it shows the latest value of."""


def say(text: str) -> None:
    """A line for the console or the job's log, at once."""
    print(text, flush=True)


def format_progress(progress: Mapping[str, float | None]) -> str:
    """The progress line of `Telemetry.progress()`; a value that is not known yet shows as `-`.

    The clamped share comes with objectives that clamp a ratio, and is left out where there is none.
    """

    def shown(field: str, pattern: str) -> str:
        value = progress.get(field)
        return "-" if value is None else format(value, pattern)

    def counted(field: str, total_field: str) -> str:
        total = progress.get(total_field)
        return shown(field, ".0f") if total is None else f"{shown(field, '.0f')}/{total:.0f}"

    parts = [
        f"step {counted('step', 'total_steps')}",
        f"batch {counted('batch', 'total_batches')}",
        f"reward {shown('reward', '.3f')}",
        f"{shown('pairs_per_sec', '.1f')} pairs/s",
        *([] if progress.get("clamped_share") is None else [f"clamped {shown('clamped_share', '.0%')}"]),
        f"queue {shown('queue_fill', '.0%')}",
        f"stale {shown('staleness_steps', '.1f')}",
        f"{shown('workers', '.0f')} workers",
        f"ETA {format_duration(progress.get('eta_sec'))}",
    ]
    if progress.get("nonfinite_scalars"):
        parts.append(f"NON-FINITE {shown('nonfinite_scalars', '.0f')}")
    return " · ".join(parts)


def format_duration(seconds: float | None) -> str:
    """`42s`, `4m10s`, `3h05m`; `-` for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class ProgressLine:
    """Shows progress on a stream: rewritten in place on a terminal, else at most one line every `every_sec`."""

    def __init__(
        self, stream: TextIO | None = None, *, every_sec: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._terminal = self._stream.isatty()
        self._every_sec = every_sec
        self._clock = clock
        self._shown_sec: float | None = None
        self._width = 0
        self._last = ""

    def update(self, progress: Mapping[str, float | None]) -> None:
        """Shows the latest state, now or, in a log, when the last line is old enough."""
        line, now = format_progress(progress), self._clock()
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        elif line != self._last and (self._shown_sec is None or now - self._shown_sec >= self._every_sec):
            self._stream.write(line + "\n")
            self._shown_sec, self._last = now, line
        self._stream.flush()

    def finish(self, progress: Mapping[str, float | None] | None = None) -> None:
        """Shows the final state whatever the interval, and leaves the cursor on a fresh line."""
        if progress is not None:
            self._shown_sec = None
            self.update(progress)
        if self._terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()
