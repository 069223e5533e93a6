"""A rollout side without Ray or models: workers that obey the test, beside the real queue and the real pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from configs.learner import AsyncSchedule, SyncSchedule
from configs.rollout import QueueSection, WorkersSection
from rollout.interfaces import ChunkReport, WorkerDied, WorkerFailed
from rollout.ordinals import ChunkPlan
from rollout.pool import RolloutPool
from rollout.prompts import PromptItem, PromptStream
from rollout.replay import ReplayQueue
from rollout.wakeup import Wakeup
from rollout.weights import AdapterVersion
from tests.tiny import make_group


def version(batch: int, *, attempt: int = 0) -> AdapterVersion:
    return AdapterVersion(step=batch, batch=batch, attempt=attempt, sha256=f"{attempt}{batch:063d}")


class FakeMailbox:
    """Versions without weights."""

    def __init__(self) -> None:
        self.changed = Wakeup()
        self.versions: list[AdapterVersion] = []

    def publish(self, new: AdapterVersion) -> None:
        self.versions.append(new)
        self.changed.fire()

    async def history(self) -> Sequence[AdapterVersion]:
        return list(self.versions)

    async def wait_change(
        self, known: AdapterVersion | None, timeout_sec: float | None = None
    ) -> AdapterVersion | None:
        await self.changed.until(lambda: bool(self.versions) and self.versions[-1] != known, timeout_sec)
        return self.versions[-1] if self.versions and self.versions[-1] != known else None


class FakeWorker:
    """Puts a random group for every prompt. `die` and `fail` end its present call, and all later ones."""

    def __init__(self, world: World, worker_id: str) -> None:
        self.world = world
        self.id = worker_id
        self.killed = False
        self.fate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def die(self) -> None:
        self.fate.set_exception(WorkerDied("process 1234 was killed"))

    def fail(self, message: str) -> None:
        self.fate.set_exception(WorkerFailed(message))

    async def load(self) -> None:
        await self._unless_fate(self.world.on_load(self))

    async def run_chunk(self, items: Sequence[PromptItem], required_batch: int | None) -> ChunkReport:
        self.world.started.append((self.id, [item.ordinal for item in items]))
        self.world.changed.fire()
        report: ChunkReport = await self._unless_fate(self._roll_out(items, required_batch))
        return report

    async def describe(self) -> str:
        if self.fate.done():
            self.fate.result()
        return f"{self.id} describes itself"

    async def adapter_sha256(self) -> str:
        return self.world.mailbox.versions[-1].sha256

    def kill(self) -> None:
        self.killed = True

    async def _roll_out(self, items: Sequence[PromptItem], required_batch: int | None) -> ChunkReport:
        now = self.world.mailbox.versions[-1]
        self.world.at_gate += 1
        self.world.changed.fire()
        await self.world.gate.wait()
        self.world.at_gate -= 1
        if required_batch not in (None, now.batch):
            return ChunkReport(self.id, now)
        answers = []
        for item in items:
            group = make_group(item.ordinal, policy_step=now.step, adapter_sha256=now.sha256, worker=self.id, pairs=1)
            payload = self.world.spoil(self.id, group.to_bytes())
            answers.append(await self.world.queue.put(payload, group.header(len(payload))))
        return ChunkReport(
            self.id,
            now,
            delivered=sum(answer.startswith(("stored", "duplicate", "dropped")) for answer in answers),
            superseded=tuple(answer for answer in answers if answer.startswith("superseded")),
            refused=tuple(answer for answer in answers if answer.startswith("refused")),
            closed=any(answer.startswith("closed") for answer in answers),
            network_evaluations=10 * len(items),
        )

    async def _unless_fate(self, work: Any) -> Any:
        task = asyncio.ensure_future(work)
        await asyncio.wait({task, self.fate}, return_when=asyncio.FIRST_COMPLETED)
        if self.fate.done():
            task.cancel()
            self.fate.result()
        return task.result()


class World:
    """Queue, mailbox, pool, and the workers that it has started, oldest first."""

    def __init__(
        self,
        schedule: SyncSchedule | AsyncSchedule,
        *,
        groups_per_batch: int = 4,
        chunk_groups: int = 2,
        capacity_groups: int = 1000,
        max_batches: int | None = None,
        pool: dict[str, Any] | None = None,
        **workers: Any,
    ) -> None:
        sync = isinstance(schedule, SyncSchedule)
        self.mailbox = FakeMailbox()
        settings = QueueSection(capacity_groups=capacity_groups)
        self.queue = ReplayQueue(settings, schedule, groups_per_batch, versions=self.mailbox)
        self.workers: list[FakeWorker] = []
        self.started: list[tuple[str, list[int]]] = []
        self.changed = Wakeup()
        self.gate = asyncio.Event()  # closed: workers stay in the middle of their chunk
        self.gate.set()
        self.at_gate = 0
        self.on_load: Callable[[FakeWorker], Any] = self._load_at_once
        self.spoil: Callable[[str, bytes], bytes] = lambda worker_id, payload: payload
        self.pool = RolloutPool(
            WorkersSection(chunk_groups=chunk_groups, **workers),
            ChunkPlan(chunk_groups, groups_per_batch if sync else None, max_batches),
            PromptStream(("a prompt",), seed=0),
            self.queue,
            self.mailbox,
            self._spawn,
            **{"backoff": (0.001, 0.01), "tick_sec": 0.02, **(pool or {})},
        )

    def _spawn(self, worker_id: str) -> FakeWorker:
        self.workers.append(FakeWorker(self, worker_id))
        self.changed.fire()
        return self.workers[-1]

    async def _load_at_once(self, worker: FakeWorker) -> None:
        return None

    async def until_started(self, chunks: int) -> list[tuple[str, list[int]]]:
        """Wait until so many chunks were begun."""
        await self.changed.until(lambda: len(self.started) >= chunks)
        return self.started

    async def until_at_gate(self, workers: int) -> None:
        """Wait until so many workers have their weights and stand in the middle of a chunk, at the closed gate."""
        await self.changed.until(lambda: self.at_gate >= workers)

    async def until_spawned(self, workers: int) -> list[FakeWorker]:
        await self.changed.until(lambda: len(self.workers) >= workers)
        return self.workers

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that fires no event here."""
        while not condition():
            await asyncio.sleep(0.002)
