"""A rollout worker in Ray: a thin actor, and the factory and handle through which the pool sees it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from rollout.actors import compute_options
from rollout.interfaces import ChunkReport, WorkerDied, WorkerFailed
from rollout.prompts import PromptItem

if TYPE_CHECKING:
    from configs.schema import AtelierConfig
    from rollout.worker import RolloutWorker


class RolloutWorkerActor:
    """Chunks run one after another in one thread; the calls of group `control` are answered meanwhile."""

    def __init__(self, config: AtelierConfig, worker_id: str, mailbox: Any, queue: Any) -> None:
        """Cheap: what can go wrong for good goes wrong in `load`, so that it is told from a dead process."""
        self._config = config
        self._id = worker_id
        self._mailbox = mailbox
        self._queue = queue
        self._host = ray.util.get_node_ip_address()
        self._worker: RolloutWorker | None = None

    def load(self) -> None:
        """Load policy and scorer."""
        from rollout.replay_actor import QueueClient
        from rollout.weights_actor import MailboxClient
        from rollout.worker import build_worker  # here: the pool's process has no torch

        self._worker = build_worker(self._config, self._id, MailboxClient(self._mailbox), QueueClient(self._queue))

    def run_chunk(self, items: Sequence[PromptItem], required_batch: int | None) -> ChunkReport:
        return self._loaded().run_chunk(items, required_batch)

    @ray.method(concurrency_group="control")
    def describe(self) -> str:
        """Where it runs, and what it does."""
        return f"pid {os.getpid()} on {self._host}: {'loading' if self._worker is None else self._worker.describe()}"

    @ray.method(concurrency_group="control")
    def adapter_sha256(self) -> str:
        return self._loaded().adapter_sha256()

    def _loaded(self) -> RolloutWorker:
        if self._worker is None:
            raise RuntimeError(f"{self._id} was asked for work before load()")
        return self._worker


class RayWorkers:
    """`WorkerFactory`: each worker is an actor of its own, placed by its own resources, owned by the pool."""

    def __init__(self, config: AtelierConfig, mailbox: Any, queue: Any) -> None:
        self._config = config
        self._mailbox = mailbox
        self._queue = queue
        self._actor = ray.remote(concurrency_groups={"control": 2})(RolloutWorkerActor).options(
            **compute_options(config.rollout.workers.resources)
        )

    def __call__(self, worker_id: str) -> RayWorker:
        return RayWorker(self._actor.remote(self._config, worker_id, self._mailbox, self._queue))


class RayWorker:
    """`WorkerHandle` over the actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    async def load(self) -> None:
        await _translated(self.actor.load.remote())

    async def run_chunk(self, items: Sequence[PromptItem], required_batch: int | None) -> ChunkReport:
        report: ChunkReport = await _translated(self.actor.run_chunk.remote(items, required_batch))
        return report

    async def describe(self) -> str:
        text: str = await _translated(self.actor.describe.remote())
        return text

    async def adapter_sha256(self) -> str:
        checksum: str = await _translated(self.actor.adapter_sha256.remote())
        return checksum

    def kill(self) -> None:
        ray.kill(self.actor)


async def _translated(call: Any) -> Any:
    """Ray's errors in the pool's words."""
    try:
        return await call
    except RayTaskError as error:
        cause = error.cause if error.cause is not None else error
        raise WorkerFailed(f"{type(cause).__name__}: {cause}") from error
    except RayActorError as error:
        raise WorkerDied(str(error).strip().splitlines()[-1]) from error
