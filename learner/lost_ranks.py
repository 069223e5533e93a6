"""Why ranks were lost while a run goes on. Ray Train's controller knows, and says it in its own log alone.

controller: note_loss ──► run.dir/lost_ranks.log ──► driver: LossReader ──► console
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

LOG = "lost_ranks.log"


def note_loss(run_dir: Path, reasons: Mapping[int, str]) -> None:
    """Append a line: when, and why by rank. Without it where it cannot be written: ranks may be lost to a full disk."""
    words = "; ".join(f"rank {rank}: {reasons[rank]}" for rank in sorted(reasons))
    with suppress(OSError), (run_dir / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {words}\n")


class LossReader:
    """Says what is noted from now on."""

    def __init__(self, run_dir: Path, max_failures: int) -> None:
        """`max_failures`: restarts before the run fails."""
        self._path, self._max_failures = run_dir / LOG, max_failures
        self._read_bytes = self._path.stat().st_size if self._path.exists() else 0
        self._count = 0

    def new(self) -> list[str]:
        """A line for the console for each loss since the last call that the ranks are started again after."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # the rest is being written
        self._read_bytes += len(whole)
        said = []
        for line in whole.decode("utf-8").splitlines():
            self._count += 1
            if self._count <= self._max_failures:
                why = line.partition(" ")[2].rstrip(".")
                said.append(
                    f"lost {why}. All ranks start again from the last checkpoint "
                    f"(restart {self._count} of {self._max_failures})"
                )
        return said
