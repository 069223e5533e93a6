"""Which chunk is rolled out next: bookkeeping of the pool, without waiting."""

from __future__ import annotations

import heapq

from rollout.ordinals import Chunk, ChunkPlan, Ledger, OrdinalSet
from rollout.versions import AdapterVersion


class IssueBook:
    """Hands out chunks in the order of the stream: those given back first, then new ones.

    What is finished is the queue's to say: a chunk whose ordinals its `Ledger` knows, or whose delivery it has
    confirmed since (`finish`), is never issued; one of which an ordinal is missing is issued again, whole.
    """

    def __init__(self, plan: ChunkPlan) -> None:
        self._plan = plan
        self._next = 0
        self._returned: list[int] = []
        self._in_flight: set[int] = set()
        self._finished = OrdinalSet()  # chunks; a ledger of the same epoch may have been written before them
        self._done_below = 0
        self._known: frozenset[int] = frozenset()
        self.epoch: str | None = None
        """Of the ledger in use; None before the first one, when nothing is issued."""

    @property
    def next_ordinal(self) -> int:
        """No ordinal from here on was ever issued."""
        return self._plan.chunk(self._next).ordinals.start

    @property
    def by_batch(self) -> bool:
        """Under sync, when each batch has a version of its own."""
        return self._plan.groups_per_batch is not None

    @property
    def in_flight(self) -> int:
        """Chunks that workers hold now."""
        return len(self._in_flight)

    def follow(self, ledger: Ledger) -> None:
        """Start over from what the queue knows; chunks in flight stay with their workers."""
        if ledger.epoch != self.epoch:
            self._finished = OrdinalSet(self._plan.index_of(ledger.done_below))
        self.epoch = ledger.epoch
        self._done_below, self._known = ledger.done_below, frozenset(ledger.known)
        self._returned = []
        self._next = self._plan.index_of(ledger.done_below)

    def peek(self) -> Chunk | None:
        """The chunk that comes next; None before the first ledger."""
        if self.epoch is None:
            return None
        while self._returned and self._is_settled(self._returned[0]):
            heapq.heappop(self._returned)
        while self._next in self._in_flight or self._is_settled(self._next):
            self._next += 1
        return self._plan.chunk(self._returned[0] if self._returned else self._next)

    def issue(self, version: AdapterVersion | None) -> Chunk | None:
        """The next chunk if it may be sampled at `version`: under sync only at that of its own batch."""
        chunk = self.peek()
        if chunk is None or version is None or chunk.batch not in (None, version.batch):
            return None
        if chunk.batch is not None and chunk.batch == self._plan.max_batches:
            return None
        if self._returned:
            heapq.heappop(self._returned)
        else:
            self._next += 1
        self._in_flight.add(chunk.index)
        return chunk

    def finish(self, chunk: Chunk) -> None:
        """The queue has every group of the chunk, in the epoch of the ledger in use."""
        self._in_flight.discard(chunk.index)
        self._finished.update([chunk.index])

    def give_back(self, chunk: Chunk) -> None:
        """The chunk is to be issued again."""
        self._in_flight.discard(chunk.index)
        if chunk.index < self._next and chunk.index not in self._returned:
            heapq.heappush(self._returned, chunk.index)

    def _is_settled(self, index: int) -> bool:
        ordinals = self._plan.chunk(index).ordinals
        return index in self._finished or all(n < self._done_below or n in self._known for n in ordinals)
