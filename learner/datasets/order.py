"""In which order a source's rows are read: by seed alone, shared among ranks, from any position on.

Position p of an endless sequence of epochs is one row, whatever the number of ranks: the n-th row of rank r of w is
position n w + r, so that a global batch holds the same rows on one rank as on eight. Blocks (row groups of parquet
files, which are read as a whole) are shuffled, and rows within windows of neighbouring blocks.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate
from typing import Protocol

from learner.datasets.rows import DataError, PairRow


class PairSource(Protocol):
    """Rows in blocks that are cheap to read together."""

    def block_sizes(self) -> list[int]: ...

    def row(self, block: int, offset: int) -> PairRow: ...


class Order:
    """A seeded order over blocks of the given sizes."""

    def __init__(self, block_sizes: list[int], seed: int, window_blocks: int) -> None:
        self.length = sum(block_sizes)
        """Rows of one epoch."""
        self._sizes = block_sizes
        self._seed = seed
        self._window_blocks = window_blocks
        self._epoch = self._window = -1
        self._windows: list[list[int]] = []
        self._ends: list[int] = []
        self._rows: list[tuple[int, int]] = []

    def at(self, position: int) -> tuple[int, int]:
        """Block and offset of the row at `position`, counted over all epochs."""
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            self._shuffle_blocks(epoch)
        window = bisect_right(self._ends, place)
        if window != self._window:
            self._shuffle_rows(window)
        return self._rows[place - (self._ends[window - 1] if window else 0)]

    def _shuffle_blocks(self, epoch: int) -> None:
        blocks = list(range(len(self._sizes)))
        random.Random(f"{self._seed}/{epoch}").shuffle(blocks)
        step = self._window_blocks
        self._windows = [blocks[first : first + step] for first in range(0, len(blocks), step)]
        self._ends = list(accumulate(sum(self._sizes[block] for block in window) for window in self._windows))
        self._epoch, self._window = epoch, -1

    def _shuffle_rows(self, window: int) -> None:
        self._rows = [(block, offset) for block in self._windows[window] for offset in range(self._sizes[block])]
        random.Random(f"{self._seed}/{self._epoch}/{window}").shuffle(self._rows)
        self._window = window


class OrderedReader:
    """What one rank reads of a source, endless."""

    def __init__(self, source: PairSource, seed: int, *, rank: int = 0, world: int = 1, window_blocks: int = 4) -> None:
        """Raises DataError for a source without rows."""
        self._source = source
        self._order = Order(source.block_sizes(), seed, window_blocks)
        if self._order.length == 0:
            raise DataError("no row is left to train on; look at data.where, data.held_out and the rows' has_label")
        self._rank, self._world, self._taken = rank, world, 0

    @property
    def epoch_rows(self) -> int:
        """Rows of one epoch, over all ranks."""
        return self._order.length

    def take(self, count: int) -> list[PairRow]:
        """This rank's next rows. Raises DataError for a bad one."""
        first, self._taken = self._taken, self._taken + count
        places = (self._order.at(n * self._world + self._rank) for n in range(first, first + count))
        return [self._source.row(block, offset) for block, offset in places]

    def seek(self, taken: int) -> None:
        """Go on as if this rank had taken `taken` rows."""
        self._taken = taken
