"""One place for a worker in the pool: what the pool knows about whoever fills it."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.interfaces import WorkerHandle


@dataclass
class Slot:
    """A place for one worker; its process may be replaced."""

    index: int
    incarnation: int = 0
    state: str = "new"
    """new, loading, idle, busy, backing off, gone."""
    last_action: str = "not started yet"
    retiring: bool = False
    failures: int = 0
    """In a row, without a finished chunk between them."""
    worker: WorkerHandle | None = None
    lost: str | None = None
    """Why an idle worker's process turned out to be gone."""

    @property
    def name(self) -> str:
        return f"rollout-{self.index}.{self.incarnation}"

    @property
    def alive(self) -> bool:
        return self.state in ("idle", "busy")
