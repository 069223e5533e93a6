"""The rollout pool in Ray: a thin async actor that owns its workers, and the blocking client of driver and `scale`.

driver ── create_pool ──► PoolActor ── owns ──► worker actors (end with the pool; a restarted pool starts new ones
                            │  │                               and asks the queue what is still missing)
                 queue ◄────┘  └────► mailbox
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

from configs.learner import SyncSchedule
from rollout.actors import actor_name, control_options, find_actor
from rollout.interfaces import PeerLost
from rollout.ordinals import ChunkPlan, Ledger
from rollout.pool import RolloutPool
from rollout.prompts import PromptStream, load_prompts
from rollout.versions import AdapterVersion
from rollout.worker_actor import RayWorkers

if TYPE_CHECKING:
    from configs.schema import AtelierConfig


logger = logging.getLogger(__name__)


class PoolActor:
    """`RolloutPool` as an actor: same methods."""

    def __init__(self, config: AtelierConfig) -> None:
        """Finds prompts and peers itself: large arguments and handles may be lost by a restart (Ray issue 53727)."""
        prompts = load_prompts(config.prompts.source, config.prompts.limit)
        queue, mailbox = find_actor("queue", config.run.name), find_actor("mailbox", config.run.name)
        target = TargetFile(config.run.path.resolve())
        workers = config.rollout.workers
        if ray.get_runtime_context().was_current_actor_reconstructed:
            workers = workers.model_copy(update={"initial": target.read() or workers.initial})
        self._pool = RolloutPool(
            workers,
            chunk_plan(config),
            PromptStream(prompts, config.run.seed),
            _QueuePort(queue),
            _MailboxPort(mailbox),
            RayWorkers(config, mailbox, queue),
            keep_target=target.write,
        )
        self._pool.start()  # an async actor's constructor runs inside its event loop

    async def set_target(self, workers: int) -> tuple[int, int]:
        return self._pool.set_target(workers)

    async def status(self) -> str:
        return self._pool.status()

    async def stats(self) -> dict[str, Any]:
        return self._pool.stats()

    async def adapter_checksums(self) -> dict[str, str]:
        return await self._pool.adapter_checksums()

    async def stop(self, timeout_sec: float = 10.0) -> None:
        await self._pool.stop(timeout_sec)


class TargetFile:
    """How many workers a run's pool was last told to keep, in the run directory, for a pool that is started again."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "workers"

    def write(self, workers: int) -> None:
        """Whole or not at all; a disk that refuses costs no more than a warning."""
        partial = self._path.with_suffix(".partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(f"{workers}\n")
            os.replace(partial, self._path)
        except OSError as error:
            logger.warning("a pool that is restarted will not know of %d workers: %s", workers, error)

    def read(self) -> int | None:
        """None where nothing can be read."""
        try:
            return int(self._path.read_text())
        except (OSError, ValueError):
            return None


def chunk_plan(config: AtelierConfig) -> ChunkPlan:
    """How the stream is cut into chunks in this run."""
    by_batch = isinstance(config.schedule, SyncSchedule)
    return ChunkPlan(
        config.rollout.workers.chunk_groups,
        config.learner.groups_per_batch if by_batch else None,
        config.learner.max_batches if by_batch else None,
    )


class _QueuePort:
    """`LedgerSource` over the queue's actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def ledger(self, known_epoch: str | None = None, timeout_sec: float | None = None) -> Ledger | None:
        ledger: Ledger | None = await _answer(self._actor.ledger.remote(known_epoch, timeout_sec))
        return ledger

    async def stats(self) -> Mapping[str, Any]:
        stats: Mapping[str, Any] = await _answer(self._actor.stats.remote())
        return stats


class _MailboxPort:
    """`VersionSource` over the mailbox's actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def wait_change(
        self, known: AdapterVersion | None, timeout_sec: float | None = None
    ) -> AdapterVersion | None:
        version: AdapterVersion | None = await _answer(self._actor.wait_change.remote(known, timeout_sec))
        return version


async def _answer(call: Any) -> Any:
    try:
        return await call
    except RayActorError as error:
        raise PeerLost(str(error).strip().splitlines()[0]) from error


class PoolClient:
    """Blocking calls to the pool's actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def set_target(self, workers: int) -> tuple[int, int]:
        """Numbers before and after. Raises ValueError outside rollout.workers.min..max."""
        before, after = ray.get(self.actor.set_target.remote(workers))
        return before, after

    def status(self) -> str:
        """`running`, `stopped`, or what ends the run: `stalled: ..`, `failed: ..`."""
        status: str = ray.get(self.actor.status.remote())
        return status

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = ray.get(self.actor.stats.remote())
        return stats

    def adapter_checksums(self) -> dict[str, str]:
        """Of every live worker, recomputed from its network."""
        checksums: dict[str, str] = ray.get(self.actor.adapter_checksums.remote())
        return checksums

    def stop(self, timeout_sec: float = 10.0) -> None:
        """End every worker; call it after the queue is closed, which releases held ones. Harmless when repeated."""
        try:
            ray.get(self.actor.stop.remote(timeout_sec))
        except RayActorError:
            return


def create_pool(config: AtelierConfig) -> Any:
    """The pool as a named actor, after queue and mailbox. Its workers start at once."""
    options = control_options(actor_name("pool", config.run.name))
    return ray.remote(PoolActor).options(**options).remote(config)
