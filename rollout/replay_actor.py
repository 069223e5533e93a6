"""The replay queue in Ray: a thin async actor, shards for its payloads, and the blocking client of workers and ranks.

    worker ── QueueClient.put ──► ReplayActor (bookkeeping, checks) ──► PayloadShard 0 .. S-1     (queue.shards = S > 1)
    rank   ── QueueClient.take ─►      │                                      │
                                       └── history() ──► mailbox              └─ dies: its groups are rolled out again

Payloads are copied into the actor: an object that a worker put would die with the worker. The actor's calls overlap, so
a held producer never blocks a waiting rank. A restarted actor holds producers until rank 0 loads a state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

from rollout.actors import actor_name, control_options, find_actor, was_restarted
from rollout.group_record import GroupHeader
from rollout.interfaces import PayloadLost, PayloadStore, VersionHistory
from rollout.replay import ReplayQueue
from rollout.replay_store import LocalStore
from rollout.weights import AdapterVersion

if TYPE_CHECKING:
    from configs.schema import AtelierConfig
    from rollout.ordinals import Ledger


class ReplayActor:
    """`ReplayQueue` as an actor: same methods."""

    def __init__(self, config: AtelierConfig, versions: VersionHistory, awaiting_state: bool) -> None:
        shards = config.queue.shards
        self._queue = ReplayQueue(
            config.queue,
            config.schedule,
            config.learner.groups_per_batch,
            store=LocalStore() if shards == 1 else ShardedStore(shards),
            versions=versions,
            awaiting_state=awaiting_state or was_restarted(),
        )

    async def put(self, payload: bytes, header: GroupHeader) -> str:
        return await self._queue.put(payload, header)

    async def expect(self, latent_shape: Sequence[int]) -> None:
        await self._queue.expect(latent_shape)

    async def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None:
        return await self._queue.take(batch, rank, world, learner_step)

    async def retire(self, batch: int) -> None:
        await self._queue.retire(batch)

    async def state_dict(self) -> bytes:
        return await self._queue.state_dict()

    async def load_state_dict(self, state: bytes | None) -> None:
        await self._queue.load_state_dict(state)

    async def ledger(self, known_epoch: str | None = None, timeout_sec: float | None = None) -> Ledger | None:
        return await self._queue.ledger(known_epoch, timeout_sec)

    async def close(self, reason: str) -> None:
        await self._queue.close(reason)

    async def stats(self) -> dict[str, Any]:
        return await self._queue.stats()


class PayloadShard:
    """Part of the queue's payloads in a process of its own. A restarted one is empty."""

    def __init__(self) -> None:
        self._store = LocalStore()

    async def put(self, key: int, payload: bytes) -> None:
        await self._store.put(key, payload)

    async def get(self, keys: Sequence[int]) -> list[bytes] | list[int]:
        """The payloads, or the keys that are gone."""
        try:
            return await self._store.get(keys)
        except PayloadLost as lost:
            return lost.keys

    async def delete(self, keys: Sequence[int]) -> None:
        self._store.delete(keys)


class ShardedStore(PayloadStore):
    """Spreads payloads over `PayloadShard` actors by key; they live and die with the queue's actor."""

    def __init__(self, shards: int) -> None:
        options = {**control_options(), "scheduling_strategy": "SPREAD"}
        self.shards = [ray.remote(PayloadShard).options(**options).remote() for _ in range(shards)]

    async def put(self, key: int, payload: bytes) -> None:
        await self._shard(key).put.remote(key, payload)

    async def get(self, keys: Sequence[int]) -> list[bytes]:
        by_shard: dict[int, list[int]] = {}
        for key in keys:
            by_shard.setdefault(key % len(self.shards), []).append(key)
        answers = await asyncio.gather(*(self.shards[index].get.remote(part) for index, part in by_shard.items()))
        found: dict[int, bytes] = {}
        lost: list[int] = []
        for part, answer in zip(by_shard.values(), answers, strict=True):
            if all(isinstance(entry, bytes) for entry in answer):
                found.update(zip(part, answer, strict=True))
            else:
                lost.extend(answer)
        if lost:
            raise PayloadLost(lost)
        return [found[key] for key in keys]

    def delete(self, keys: Sequence[int]) -> None:
        for index, shard in enumerate(self.shards):
            if part := [key for key in keys if key % len(self.shards) == index]:
                shard.delete.remote(part)

    def _shard(self, key: int) -> Any:
        return self.shards[key % len(self.shards)]


class _MailboxHistory:
    """By the mailbox's name: a handle among an actor's arguments may lie where its restart does not find it."""

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name
        self._mailbox: Any = None

    async def history(self) -> Sequence[AdapterVersion]:
        if self._mailbox is None:
            self._mailbox = find_actor("mailbox", self._run_name)
        versions: Sequence[AdapterVersion] = await self._mailbox.history.remote()
        return versions


class QueueClient:
    """Blocking calls to the queue's actor, for workers and learner ranks."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def put(self, payload: bytes, header: GroupHeader) -> str:
        """Blocks while the queue is full. See `ReplayQueue.put`."""
        answer: str = ray.get(self.actor.put.remote(payload, header))
        return answer

    def expect(self, latent_shape: Sequence[int]) -> None:
        ray.get(self.actor.expect.remote(tuple(latent_shape)))

    def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None:
        """Blocks until the batch is there. Raises QueueLost after a restart of the actor. See `ReplayQueue.take`."""
        share: list[bytes] | None = ray.get(self.actor.take.remote(batch, rank, world, learner_step))
        return share

    def retire(self, batch: int) -> None:
        ray.get(self.actor.retire.remote(batch))

    def state_dict(self) -> bytes:
        state: bytes = ray.get(self.actor.state_dict.remote())
        return state

    def load_state_dict(self, state: bytes | None) -> None:
        ray.get(self.actor.load_state_dict.remote(state))

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = ray.get(self.actor.stats.remote())
        return stats

    def close(self, reason: str) -> None:
        """Wake everyone who waits. Harmless when the actor is gone already."""
        try:
            ray.get(self.actor.close.remote(reason))
        except RayActorError:
            return


def create_queue(config: AtelierConfig, *, resume: bool = False) -> Any:
    """The queue as a named actor, after the mailbox. `resume`: hold producers until a state is loaded."""
    workers, ranks = config.rollout.workers.max, config.learner.ranks
    options = control_options(
        actor_name("queue", config.run.name),
        max_concurrency=max(1000, 4 * (workers + ranks)),  # every worker held, every rank waiting, and as many again
    )
    return ray.remote(ReplayActor).options(**options).remote(config, _MailboxHistory(config.run.name), resume)
