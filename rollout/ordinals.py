"""Which ordinals of the prompt stream are finished, and in which chunks they are rolled out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class OrdinalSet:
    """A set of ordinals that is nearly a prefix 0, 1, .. of the stream: one number and the few beyond it."""

    def __init__(self, below: int = 0, beyond: Iterable[int] = ()) -> None:
        """All of 0 .. below - 1, and those of `beyond`."""
        self.below = below
        self._beyond: set[int] = set()
        self.update(beyond)

    def update(self, ordinals: Iterable[int]) -> None:
        self._beyond.update(ordinal for ordinal in ordinals if ordinal >= self.below)
        while self.below in self._beyond:
            self._beyond.remove(self.below)
            self.below += 1

    @property
    def beyond(self) -> tuple[int, ...]:
        """The members above the prefix, sorted."""
        return tuple(sorted(self._beyond))

    def __contains__(self, ordinal: int) -> bool:
        return ordinal < self.below or ordinal in self._beyond

    def __len__(self) -> int:
        return self.below + len(self._beyond)


@dataclass(frozen=True)
class Ledger:
    """What the queue knows: everything that is not in it still has to be rolled out."""

    epoch: str
    """Changes whenever the queue's contents were replaced or some of them were lost."""
    done_below: int
    """Ordinals below this are trained or dropped."""
    known: tuple[int, ...]
    """Further ordinals that are trained, dropped or held."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive ordinals that one worker rolls out together."""

    index: int
    ordinals: range
    batch: int | None
    """The global batch that they belong to under `schedule: sync`; None under `async`."""


@dataclass(frozen=True)
class ChunkPlan:
    """Cuts the stream into chunks: the same ones whoever rolls them out and however often.

    Under sync no chunk crosses a global batch. A chunk is always rolled out whole: float results may depend in the last
    bit on what else is in a worker's batch, and group n must not depend on which of its neighbours were lost.
    """

    chunk_groups: int
    groups_per_batch: int | None
    """G under `schedule: sync`; None under `async`."""
    max_batches: int | None = None
    """Under sync the last batch's version is not sampled any more: the run ends with it."""

    def chunk(self, index: int) -> Chunk:
        size, per_batch = self.chunk_groups, self.groups_per_batch
        if per_batch is None:
            return Chunk(index, range(index * size, (index + 1) * size), None)
        batch, part = divmod(index, self._chunks_per_batch(per_batch))
        start = batch * per_batch + part * size
        return Chunk(index, range(start, min(start + size, (batch + 1) * per_batch)), batch)

    def index_of(self, ordinal: int) -> int:
        """The chunk that holds `ordinal`."""
        if self.groups_per_batch is None:
            return ordinal // self.chunk_groups
        batch, position = divmod(ordinal, self.groups_per_batch)
        return batch * self._chunks_per_batch(self.groups_per_batch) + position // self.chunk_groups

    def _chunks_per_batch(self, groups_per_batch: int) -> int:
        return -(-groups_per_batch // self.chunk_groups)
