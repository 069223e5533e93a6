"""The desk at which the pool's workers get their chunks: follows queue and mailbox, and wakes whoever waits for work.

queue ── ledger: what it has ──► IssueBook ◄── given back ── worker lost, or its groups not wanted at this version
mailbox ── newest version ─────►     │
                                     └── next_chunk ──► worker
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rollout.interfaces import ChunkReport, LedgerSource, PeerLost, VersionSource
from rollout.issue import IssueBook
from rollout.ordinals import Chunk, ChunkPlan, Ledger
from rollout.versions import AdapterVersion
from rollout.wakeup import Wakeup

logger = logging.getLogger(__name__)
_LONG_POLL_SEC = 30.0
_RETRY_SEC = 1.0


class WorkDesk:
    """Chunks in, reports out; `changed` is fired whenever there may be new work."""

    def __init__(self, plan: ChunkPlan, queue: LedgerSource, mailbox: VersionSource, changed: Wakeup) -> None:
        self.book = IssueBook(plan)
        self.version: AdapterVersion | None = None
        self._queue = queue
        self._mailbox = mailbox
        self._changed = changed
        self._issued_in: dict[int, str | None] = {}  # chunk index -> the ledger's epoch

    async def next_chunk(self, wanted: Callable[[], bool]) -> Chunk | None:
        """The next chunk as soon as there is one; None once `wanted()` is false."""
        while wanted():
            if (chunk := self.book.issue(self.version)) is not None:
                self._issued_in[chunk.index] = self.book.epoch
                return chunk
            await self._changed.wait()
        return None

    def give_back(self, chunk: Chunk) -> None:
        """The chunk's worker is gone: issue it again."""
        self._issued_in.pop(chunk.index, None)
        self.book.give_back(chunk)
        self._changed.fire()

    async def settle(self, chunk: Chunk, report: ChunkReport) -> bool:
        """Close a chunk, or see what the queue still lacks of it. Returns whether all of it was delivered."""
        delivered = report.delivered == len(chunk.ordinals)
        if delivered and self._issued_in.get(chunk.index) == self.book.epoch:
            self._issued_in.pop(chunk.index)
            self.book.finish(chunk)
            return True
        # The version or the queue's contents changed under this chunk, so only the queue can say what is missing.
        ledger = await self._ledger()
        self.give_back(chunk)
        self._follow(ledger)
        if not delivered:
            await self._changed.wait(_RETRY_SEC)
        return delivered

    async def watch_queue(self) -> None:
        """Start over whenever the queue's contents were replaced or lost."""
        while True:
            ledger = await self._ledger(self.book.epoch)
            if ledger is None:
                await asyncio.sleep(_RETRY_SEC)
            elif ledger.epoch != self.book.epoch:
                logger.info("the queue's contents are new: going on from ordinal %d", ledger.done_below)
            self._follow(ledger)

    async def watch_versions(self) -> None:
        """Release what waits for the newest version. Under sync all earlier batches are over by then."""
        while True:
            try:
                version = await self._mailbox.wait_change(self.version, _LONG_POLL_SEC)
            except PeerLost as error:
                logger.warning("the weight mailbox does not answer: %s", error)
                version = None
            if version is None:
                await asyncio.sleep(_RETRY_SEC)
                continue
            if self.version is not None and self.book.by_batch:
                self._follow(await self._ledger())
            self.version = version
            self._changed.fire()

    async def _ledger(self, known_epoch: str | None = None) -> Ledger | None:
        try:
            return await self._queue.ledger(known_epoch, _LONG_POLL_SEC)
        except PeerLost as error:
            logger.warning("the replay queue does not answer: %s", error)
            return None

    def _follow(self, ledger: Ledger | None) -> None:
        if ledger is not None:
            self.book.follow(ledger)
            self._changed.fire()
