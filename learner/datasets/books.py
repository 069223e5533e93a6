"""What is known of an offline run beside its weights: how far it is, which rows were bad, whether it is to stop.

    rank ── begin, report ──► DataBooks ──► run.dir/bad_rows.jsonl      one line a bad row
    rank 0 ── retire ──────►      ▲ │
    driver ── close ──────────────┘ └──► stats ──► telemetry, summary.json

A plain class; `create_books` puts it into Ray. It needs no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray

from rollout.actors import actor_name, control_options

if TYPE_CHECKING:
    from configs.schema import AtelierConfig

BAD_ROWS = "bad_rows.jsonl"


@dataclass(frozen=True)
class BadRowNote:
    """A row that was replaced by another."""

    where: str
    reason: str


@dataclass(frozen=True)
class CacheCounts:
    """Lookups of one process so far."""

    hits: int = 0
    misses: int = 0
    corrupt: int = 0


class DataBooks:
    """Counts of all ranks. Every method bears being repeated."""

    def __init__(self, run_dir: Path, groups_per_batch: int) -> None:
        """Goes on with the list that `run_dir` has."""
        self._path = run_dir / BAD_ROWS
        self._groups_per_batch = groups_per_batch
        self._bad = dict.fromkeys(read_bad_rows(run_dir))
        _end_the_last_line(self._path)
        self._batches = 0

        self._cache: dict[str, CacheCounts] = {}
        self._rows: dict[str, int] = {}
        self._closed: str | None = None

    def closed(self) -> str | None:
        """Why the run is to end; None while it is not."""
        return self._closed

    def report(
        self, process: str, bad: Sequence[BadRowNote], cache: CacheCounts, rows: Mapping[str, int] | None = None
    ) -> None:
        """What a rank's process has met: new bad rows, its lookups in all, and the data set's sizes.

        The sizes come with every report: a process of the books that was started again has forgotten them.
        """
        self._cache[process] = cache
        self._rows = dict(rows or self._rows)
        new = [note for note in dict.fromkeys(bad) if note not in self._bad]
        if new:
            self._bad.update(dict.fromkeys(new))
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(note), ensure_ascii=False) + "\n" for note in new)
                file.flush()
                os.fsync(file.fileno())

    def start_at(self, batch: int, rows: Mapping[str, int]) -> None:
        """The learner starts at batch `batch` on a data set of these sizes."""
        self._batches, self._rows = batch, dict(rows)

    def retire(self, batch: int) -> None:
        """Batch `batch` is trained."""
        self._batches = max(self._batches, batch + 1)

    def close(self, reason: str) -> None:
        """Ranks that ask for a batch get none from now on."""
        self._closed = self._closed or reason

    def stats(self) -> dict[str, Any]:
        """Counts for telemetry and summary.json: every group (pair or picture) that was made was trained."""
        groups = self._batches * self._groups_per_batch
        cache = [asdict(counts) for counts in self._cache.values()]
        return {
            "produced": groups,
            "trained": groups,
            "dropped": {},
            "queued": 0,
            "pairs_trained": groups,
            "batch": self._batches,
            "bad_rows": len(self._bad),
            **{f"cache_{name}": sum(counts[name] for counts in cache) for name in asdict(CacheCounts())},
            **self._rows,
            "closed": self._closed,
        }


def read_bad_rows(run_dir: Path) -> list[BadRowNote]:
    """The bad rows of a run so far; a last line that a crash cut short is left out."""
    notes = []
    path = run_dir / BAD_ROWS
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            notes.append(BadRowNote(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return notes


def _end_the_last_line(path: Path) -> None:
    """Or the next one would be written into what a crash left of it."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


class Books(Protocol):
    """`DataBooks`, or its client (blocking)."""

    def closed(self) -> str | None: ...

    def report(
        self, process: str, bad: Sequence[BadRowNote], cache: CacheCounts, rows: Mapping[str, int] | None = None
    ) -> None: ...

    def start_at(self, batch: int, rows: Mapping[str, int]) -> None: ...

    def retire(self, batch: int) -> None: ...

    def stats(self) -> dict[str, Any]: ...


class BooksClient:
    """Blocking calls to the actor: `Books`, and the driver's `close`."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def closed(self) -> str | None:
        reason: str | None = ray.get(self.actor.closed.remote())
        return reason

    def report(
        self, process: str, bad: Sequence[BadRowNote], cache: CacheCounts, rows: Mapping[str, int] | None = None
    ) -> None:
        ray.get(self.actor.report.remote(process, list(bad), cache, rows))

    def start_at(self, batch: int, rows: Mapping[str, int]) -> None:
        ray.get(self.actor.start_at.remote(batch, dict(rows)))

    def retire(self, batch: int) -> None:
        ray.get(self.actor.retire.remote(batch))

    def close(self, reason: str) -> None:
        ray.get(self.actor.close.remote(reason))

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = ray.get(self.actor.stats.remote())
        return stats


def create_books(config: AtelierConfig) -> Any:
    """The books as a named actor. Raises ValueError where a live run has the same name."""
    options = control_options(actor_name("books", config.run.name), max_concurrency=1)
    return ray.remote(DataBooks).options(**options).remote(config.run.path, config.learner.groups_per_batch)
