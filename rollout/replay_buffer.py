"""The replay queue's rules, without waiting: which groups are held, which are leased as a batch, and the books.

arrive ─► held, waiting ── lease(b): G groups ─► held, leased ── retire(b) ─► trained
                └─ too old at lease(b) ─► dropped                └─ lost with a shard ─► rolled out again
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from configs.learner import AsyncSchedule, SyncSchedule
from configs.rollout import QueueSection
from rollout.group_record import GroupHeader
from rollout.ordinals import OrdinalSet
from rollout.replay_state import Books, QueueState


@dataclass(frozen=True)
class Held:
    """A group in the queue."""

    header: GroupHeader
    key: int
    """Of its payload in the store; a new one for every arrival, so that a late one cannot overwrite another."""


@dataclass(frozen=True)
class Lease:
    """A global batch in the hands of the learner: handed out, not yet trained."""

    batch: int
    ordinals: list[int]
    """Sorted."""


class ReplayBuffer:
    """Plain, synchronous state of one queue. `groups_per_batch` is G."""

    def __init__(self, settings: QueueSection, schedule: SyncSchedule | AsyncSchedule, groups_per_batch: int) -> None:
        self.groups_per_batch = groups_per_batch
        self._settings = settings
        self._schedule = schedule
        self.load(None)

    def load(self, state: QueueState | None) -> None:
        """Become `state`, without its groups (`add` them); None is the empty start."""
        self.epoch = uuid.uuid4().hex
        self.held: dict[int, Held] = {}
        self.waiting: dict[int, None] = {}  # ordinals in the order of arrival
        self.arriving: dict[int, GroupHeader] = {}  # admitted, on their way into the store
        self.lease: Lease | None = None
        self.next_batch = state.next_batch if state else 0  # the first one that is not leased
        self.learner_step = state.learner_step if state else 0
        self.books = state.books if state else Books()
        self.done = state.done if state else OrdinalSet()
        self.staleness: list[int] = []  # of the last leased batch, in optimiser steps

    def in_order(self) -> list[Held]:
        """What is held: the leased batch, then the rest in the order of arrival."""
        ordinals = [*(self.lease.ordinals if self.lease else ()), *self.waiting]
        return [self.held[ordinal] for ordinal in ordinals if ordinal in self.held]

    def state(self) -> QueueState:
        """A copy of the state without groups. A leased batch counts as not trained: it will be asked for again."""
        return QueueState(
            schedule=self._schedule.type,
            groups_per_batch=self.groups_per_batch,
            next_batch=self.current_batch,
            learner_step=self.learner_step,
            books=deepcopy(self.books),
            done=deepcopy(self.done),
            groups=[],
        )

    @property
    def current_batch(self) -> int:
        """The first batch that is not trained."""
        return self.next_batch if self.lease is None else self.lease.batch

    @property
    def waiting_bytes(self) -> int:
        return sum(self.held[ordinal].header.nbytes for ordinal in self.waiting)

    # Arrivals

    def has(self, ordinal: int) -> bool:
        """Is it held, trained or dropped already?"""
        return ordinal in self.held or ordinal in self.done

    def batch_of(self, ordinal: int) -> int | None:
        """The one global batch that an ordinal can be part of (sync), or None (async)."""
        return ordinal // self.groups_per_batch if isinstance(self._schedule, SyncSchedule) else None

    def is_stale(self, header: GroupHeader) -> bool:
        if isinstance(self._schedule, SyncSchedule):
            return False
        return self.learner_step - header.policy_step > self._schedule.max_staleness_steps

    def has_room(self, header: GroupHeader, *, learner_waits: bool) -> bool:
        """May the group come in? Always when the learner cannot go on without it."""
        if self.batch_of(header.ordinal) is not None or (self.lease and header.ordinal in self.lease.ordinals):
            return True
        groups = len(self.waiting) + len(self.arriving)
        if learner_waits and groups < self.groups_per_batch:
            return True  # one batch does not fit capacity_bytes: holding producers would be a deadlock
        size = self.waiting_bytes + sum(other.nbytes for other in self.arriving.values()) + header.nbytes
        return groups < self._settings.capacity_groups and size <= self._settings.capacity_bytes

    def add(self, header: GroupHeader, key: int) -> None:
        """Hold a group whose payload lies in the store under `key`."""
        self.held[header.ordinal] = Held(header, key)
        if self.lease is None or header.ordinal not in self.lease.ordinals:
            self.waiting[header.ordinal] = None

    # Batches

    def try_to_lease(self, batch: int) -> list[int] | None:
        """Lease the next batch if its groups are there; drop what is too old. Keys to free; None if nothing changed."""
        dropped: list[int] = []
        if isinstance(self._schedule, SyncSchedule):
            first = batch * self.groups_per_batch
            chosen = [n for n in range(first, first + self.groups_per_batch) if n in self.waiting]
        else:
            dropped = self._drop_stale()
            chosen = sorted(itertools.islice(self.waiting, self.groups_per_batch))
        if len(chosen) < self.groups_per_batch:
            return dropped or None
        for ordinal in chosen:
            del self.waiting[ordinal]
        self.lease, self.next_batch = Lease(batch, chosen), batch + 1
        self.staleness = [self.learner_step - self.held[n].header.policy_step for n in chosen]
        return dropped

    def _drop_stale(self) -> list[int]:
        stale = [n for n in self.waiting if self.is_stale(self.held[n].header)]
        for ordinal in stale:
            del self.waiting[ordinal]
        self.books.drop("stale", len(stale))
        self.done.update(stale)
        return [self.held.pop(ordinal).key for ordinal in stale]

    def drop_on_arrival(self, header: GroupHeader) -> None:
        """Count a group that was too old before it came in."""
        self.books.produced += 1
        self.books.drop("stale", 1)
        self.done.update([header.ordinal])

    def leased_keys(self, share: slice) -> list[int] | None:
        """Payload keys of a share of the leased batch; None while there is none or some of its groups are missing."""
        if self.lease is None or not all(ordinal in self.held for ordinal in self.lease.ordinals):
            return None
        return [self.held[ordinal].key for ordinal in self.lease.ordinals[share]]

    def retire(self, batch: int) -> list[int]:
        """The leased batch is trained; returns the keys to free, none if `batch` was retired before."""
        if batch < self.current_batch:
            return []
        lease = self.lease
        if lease is None or batch != lease.batch:
            raise ValueError(f"batch {batch} cannot be retired: the queue is at batch {self.current_batch}, not leased")
        self.lease = None
        freed = [self.held.pop(ordinal) for ordinal in lease.ordinals if ordinal in self.held]
        self.done.update(lease.ordinals)
        self.books.trained += len(freed)
        self.books.pairs_trained += sum(held.header.num_pairs for held in freed)
        return [held.key for held in freed]

    def forget(self, keys: Sequence[int]) -> None:
        """Payloads are gone: their ordinals have to be rolled out again."""
        lost = [ordinal for ordinal, held in self.held.items() if held.key in set(keys)]
        for ordinal in lost:
            del self.held[ordinal]
            self.waiting.pop(ordinal, None)
        self.books.drop("lost", len(lost))
        self.epoch = uuid.uuid4().hex
