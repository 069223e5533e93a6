"""The replay queue: bounded, idempotent, staleness-checked. A plain asyncio class; `replay_actor.py` puts it into Ray.

    worker ── put ──► fault? ─► known version? ─► room? ──► waiting ──┐ take(b): G groups are leased as batch b
                      refused   refused           held                ├──► rank r: its share, the same if asked again
                                superseded                            │    take(b + 1) or retire(b): b is trained, freed
                                                dropped ◄── too old ──┘
    Who unblocks whom: put wakes ranks that wait for a batch; take, retire and drops make room and wake held producers;
    a rank that starts to wait wakes producers held by a bound that one batch does not fit; load_state_dict and close
    wake everyone, the pool included (`ledger`).

Under `schedule: sync` batch b is exactly the ordinals [b G, (b + 1) G), all sampled at the version published with
batch = b; its groups are always admitted, since nothing else can make room for them. Under `async` batch b is the first
G groups by arrival that are not too old. The bounds hold for waiting groups; one leased batch comes on top.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from configs.learner import AsyncSchedule, SyncSchedule
from configs.rollout import QueueSection
from rollout.group_record import GroupHeader
from rollout.interfaces import PayloadLost, PayloadStore, QueueLost, VersionHistory
from rollout.ordinals import Ledger
from rollout.replay_buffer import ReplayBuffer
from rollout.replay_checks import VersionBook, find_fault
from rollout.replay_state import QueueState
from rollout.replay_store import LocalStore
from rollout.wakeup import Wakeup

logger = logging.getLogger(__name__)


class ReplayQueue:
    """See the module's text. G is `groups_per_batch`."""

    def __init__(
        self,
        settings: QueueSection,
        schedule: SyncSchedule | AsyncSchedule,
        groups_per_batch: int,
        *,
        store: PayloadStore | None = None,
        versions: VersionHistory | None = None,
        awaiting_state: bool = False,
    ) -> None:
        """`versions`: which adapters groups may carry (unset: not checked). `awaiting_state`: producers are held and
        `take` raises QueueLost until `load_state_dict`, as after a restart that lost the groups."""
        self._settings = settings
        self._schedule = schedule
        self._buffer = ReplayBuffer(settings, schedule, groups_per_batch)
        self._store: PayloadStore = store or LocalStore()
        self._versions = VersionBook(versions)
        self._awaiting_state = awaiting_state
        self._changed = Wakeup()
        self._closed: str | None = None
        self._keys = itertools.count()
        self._loads = 0
        self._latent_shape: tuple[int, ...] | None = None
        self._waiting_producers = self._waiting_ranks = 0
        self._producer_wait_sec = self._learner_wait_sec = 0.0

    # Producers

    async def put(self, payload: bytes, header: GroupHeader) -> str:
        """Deliver one group; waits while the queue is full. Delivering an ordinal twice is harmless.

        Returns `stored`, `duplicate`, `dropped: why` (too old already), `superseded: why` (another version or batch is
        wanted now), `refused: why` (bad bytes, values or version; names the worker) or `closed: why`.
        """
        if fault := await find_fault(payload, header, self._settings.capacity_bytes, self._latent_shape):
            return self._refuse("invalid", f"refused: {fault}")
        while True:
            if answer := await self._until_room(header):
                return answer
            epoch, arriving, key = self._buffer.epoch, self._buffer.arriving, next(self._keys)
            arriving[header.ordinal] = header
            try:
                await self._store.put(key, payload)
            finally:
                del arriving[header.ordinal]
                self._changed.fire()
            if epoch == self._buffer.epoch:
                self._buffer.add(header, key)
                self._buffer.books.produced += 1
                return "stored"
            self._store.delete([key])  # the contents were replaced meanwhile: look again

    async def _until_room(self, header: GroupHeader) -> str | None:
        """Wait until the group may come in (None), or until it need not (the answer)."""
        asked: int | None = None  # in which of the loads: what was known before a load is forgotten
        held = False
        started = time.monotonic()
        try:
            while self._closed is None:
                if not self._awaiting_state and header.ordinal not in self._buffer.arriving:
                    batch = self._buffer.batch_of(header.ordinal)
                    if asked != self._loads and not self._versions.knows(header, batch):
                        asked = self._loads
                        await self._versions.refresh()
                        continue
                    if answer := self._unwanted(header):
                        return answer
                    if self._buffer.has_room(header, learner_waits=self._waiting_ranks > 0):
                        return None
                if not held:
                    held = True
                    self._waiting_producers += 1
                await self._changed.wait()
            return f"closed: {self._closed}"
        finally:
            if held:
                self._waiting_producers -= 1
                self._producer_wait_sec += time.monotonic() - started

    def _unwanted(self, header: GroupHeader) -> str | None:
        """Why a valid group does not come in, counted; None when it may."""
        buffer = self._buffer
        if buffer.has(header.ordinal):
            buffer.books.duplicates += 1
            return "duplicate"
        where = f"group {header.ordinal} of {header.worker} at step {header.policy_step}"
        version = f"adapter {header.adapter_sha256[:12]}"
        if not self._versions.knows(header):
            if self._versions.knew(header):
                return self._refuse("superseded", f"superseded: {where}: {version} was taken back")
            return self._refuse("unknown_version", f"refused: {where}: {version} was never published")
        batch = buffer.batch_of(header.ordinal)
        if batch is not None and (batch > buffer.next_batch or not self._versions.knows(header, batch)):
            wanted = f"the queue is at batch {buffer.next_batch}, and wants each batch at its own version"
            return self._refuse("superseded", f"superseded: {where} is for batch {batch}; {wanted}")
        if buffer.is_stale(header):
            buffer.drop_on_arrival(header)
            return f"dropped: {where} is too old: the learner is at step {buffer.learner_step}"
        return None

    def _refuse(self, reason: str, answer: str) -> str:
        self._buffer.books.refuse(reason)
        logger.log(logging.INFO if reason == "superseded" else logging.ERROR, "%s", answer)
        return answer

    # The learner

    async def expect(self, latent_shape: Sequence[int]) -> None:
        """From now on refuse groups whose latents have another shape (C, H, W)."""
        self._latent_shape = tuple(latent_shape)

    async def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None:
        """The share of `rank` (of `world`) in global batch `batch`, by ordinal; the same again when asked again.

        Waits until the batch is there; None once the queue is closed. Asking for batch b + 1 says that b is trained.
        Raises ValueError for a batch out of turn or shares that do not come out even, QueueLost after a restart.
        """
        share = self._share(rank, world)
        started, waits, loads = time.monotonic(), False, self._loads
        try:
            while self._closed is None:
                if loads != self._loads:  # a rank of a learner that is gone must not move the new one's batches
                    raise QueueLost("the replay queue's state was replaced while this rank waited for a batch")
                self._turn_to(batch, learner_step)
                if (keys := self._buffer.leased_keys(share)) is not None:
                    try:
                        return await self._store.get(keys)
                    except PayloadLost as error:
                        self._lose(error.keys)
                        continue
                if not waits:
                    waits = True
                    self._waiting_ranks += 1
                    self._changed.fire()
                await self._changed.wait()
            return None
        finally:
            if waits:
                self._waiting_ranks -= 1
                self._learner_wait_sec += (time.monotonic() - started) / world

    def _share(self, rank: int, world: int) -> slice:
        size, rest = divmod(self._buffer.groups_per_batch, world)
        if rest or not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} has no even share of {self._buffer.groups_per_batch} groups")
        return slice(rank * size, (rank + 1) * size)

    def _turn_to(self, batch: int, learner_step: int) -> None:
        """Retire the batch before `batch` and lease `batch`, as far as either is due and possible."""
        buffer = self._buffer
        if self._awaiting_state:
            raise QueueLost
        if buffer.lease is not None and batch == buffer.lease.batch + 1:
            self._free(buffer.retire(buffer.lease.batch))
        if batch != buffer.current_batch:
            raise ValueError(f"batch {batch} was asked for, but the queue is at batch {buffer.current_batch}")
        buffer.learner_step = learner_step
        if buffer.lease is None and (dropped := buffer.try_to_lease(batch)) is not None:
            self._free(dropped)

    def _free(self, keys: list[int]) -> None:
        self._store.delete(keys)
        self._changed.fire()

    def _lose(self, keys: list[int]) -> None:
        logger.error("%d groups were lost with a shard and are rolled out again", len(keys))
        self._buffer.forget(keys)
        self._changed.fire()

    async def retire(self, batch: int) -> None:
        """Batch `batch` is trained. Repeating it is harmless; ValueError when it was not taken."""
        if self._awaiting_state:
            raise QueueLost
        self._free(self._buffer.retire(batch))

    # Checkpoints, pool, telemetry

    async def state_dict(self) -> bytes:
        """Everything, payloads included. A batch that is taken but not retired counts as waiting."""
        while not self._awaiting_state:
            held = self._buffer.in_order()
            state = self._buffer.state()
            try:
                payloads = await self._store.get([entry.key for entry in held])
            except PayloadLost as error:
                self._lose(error.keys)
                continue
            groups = [(entry.header, payload) for entry, payload in zip(held, payloads, strict=True)]
            return replace(state, groups=groups).to_bytes()
        raise QueueLost

    async def load_state_dict(self, state: bytes | None) -> None:
        """Replace everything by a checkpoint's state; None is the empty start. Rank 0 calls it whenever the learner
        starts, after its first publish. Raises ValueError, with nothing changed, for another run's state."""
        loaded = None if state is None else QueueState.from_bytes(state)
        if loaded is not None:
            for name, own in (("schedule", self._schedule.type), ("groups_per_batch", self._buffer.groups_per_batch)):
                if (found := getattr(loaded, name)) != own:
                    raise ValueError(f"the checkpoint's queue has {name} = {found}; this run has {own}")
        self._awaiting_state = True
        self._loads += 1
        self._store.delete([entry.key for entry in self._buffer.held.values()])
        self._buffer.load(loaded)
        self._versions.forget()
        for header, payload in loaded.groups if loaded else ():
            key = next(self._keys)
            await self._store.put(key, payload)
            self._buffer.add(header, key)
        self._awaiting_state = False
        self._changed.fire()

    async def ledger(self, known_epoch: str | None = None, timeout_sec: float | None = None) -> Ledger | None:
        """What need not be rolled out, once the epoch is another than `known_epoch`; None on timeout or `close`."""
        buffer = self._buffer

        def ready() -> bool:
            return not self._awaiting_state and buffer.epoch != known_epoch

        await self._changed.until(lambda: self._closed is not None or ready(), timeout_sec)
        if self._closed is not None or not ready():
            return None
        known = {*buffer.done.beyond, *buffer.held, *buffer.arriving}
        return Ledger(buffer.epoch, buffer.done.below, tuple(sorted(known)))

    async def close(self, reason: str) -> None:
        """Wake every waiter: producers get `closed: reason`, ranks None. The books stay readable."""
        self._closed = self._closed or reason
        self._changed.fire()

    async def stats(self) -> dict[str, Any]:
        """Counts and gauges for telemetry. `queued` = waiting and leased: produced = trained + dropped + queued."""
        buffer, books, settings = self._buffer, self._buffer.books, self._settings
        groups, size = len(buffer.waiting), buffer.waiting_bytes
        return {
            "groups": groups,
            "bytes": size,
            "fill": max(groups / settings.capacity_groups, size / settings.capacity_bytes),
            "produced": books.produced,
            "trained": books.trained,
            "dropped": dict(books.dropped),
            "queued": len(buffer.held),
            "refused": dict(books.refused),
            "duplicates": books.duplicates,
            "pairs_trained": books.pairs_trained,
            "batch": buffer.current_batch,
            "mean_staleness": sum(buffer.staleness) / max(1, len(buffer.staleness)),
            "max_staleness": max(buffer.staleness, default=0),
            "waiting_producers": self._waiting_producers,
            "waiting_ranks": self._waiting_ranks,
            "producer_wait_sec": self._producer_wait_sec,
            "learner_wait_sec": self._learner_wait_sec,
            "awaiting_state": self._awaiting_state,
            "closed": self._closed,
        }
