"""What a run's newest committed checkpoint says of the ordinals: in the model, waiting, or missing."""

from __future__ import annotations

from pathlib import Path

from learner.committed import list_committed
from rollout.replay_state import QueueState


def committed_queue(run_dir: Path) -> QueueState:
    return QueueState.from_bytes((list_committed(run_dir)[-1] / "queue.safetensors").read_bytes())


def assert_each_once(state: QueueState) -> None:
    """No ordinal was trained twice, none is both trained and waiting, and the books close.

    `done` is a set of ordinals and the books count events, so that an ordinal trained twice would make them differ.
    """
    books, waiting = state.books, [header.ordinal for header, _ in state.groups]
    assert len(state.done) == books.trained + books.dropped.get("stale", 0)
    assert books.trained == state.next_batch * state.groups_per_batch
    assert len(waiting) == len(set(waiting)) and not any(ordinal in state.done for ordinal in waiting)
    assert books.produced == books.trained + sum(books.dropped.values()) + len(waiting)


def missing(state: QueueState) -> set[int]:
    """Ordinals below the newest known one that are neither done nor waiting: with workers at that time, or lost."""
    waiting = {header.ordinal for header, _ in state.groups}
    known = {*state.done.beyond, *waiting, state.done.below - 1}
    return {n for n in range(state.done.below, max(known)) if n not in state.done and n not in waiting}
