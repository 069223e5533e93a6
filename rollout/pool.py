"""The rollout pool: keeps the target number of workers alive and every worker busy. A plain asyncio class without Ray.

    queue ── ledger (what it has) ──┐                       ┌─► supervisor 0 ── load, run_chunk ──► worker 0
                                    ├─► WorkDesk ── chunk ──┼─► supervisor 1 ─────────────────────► worker 1
    mailbox ── versions ────────────┘     ▲                 └─► ..    │ dies, fails: chunk given back,
      (sync: chunk of batch b only        └─────── given back ────────┘        started anew after a back-off
       at the version of batch b)
    monitor, every second: stalled? autoscale? what does each worker do?
    Who unblocks whom: a new version, a new ledger, a chunk given back, set_target and stop wake idle supervisors; a
    supervisor whose worker is held by a full queue is woken through it, by the learner.

Every chunk ends with its ordinals in the queue, or is issued again; delivering one twice is harmless. A worker that is
to go finishes its chunk first.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from configs.rollout import WorkersSection
from rollout.desk import WorkDesk
from rollout.interfaces import (
    LedgerSource,
    PeerLost,
    VersionSource,
    WorkerDied,
    WorkerFactory,
    WorkerFailed,
    WorkerHandle,
)
from rollout.ordinals import Chunk, ChunkPlan
from rollout.pool_gauges import FailureBook, StallClock, Throughput, autoscaled, backoff_sec
from rollout.prompts import PromptStream
from rollout.slot import Slot
from rollout.wakeup import Wakeup

logger = logging.getLogger(__name__)

_ANSWER_SEC = 2.0
_AUTOSCALE_SEC = 10.0


class RolloutPool:
    """See the module's text. `start` and everything after it need a running event loop."""

    def __init__(
        self,
        settings: WorkersSection,
        plan: ChunkPlan,
        prompts: PromptStream,
        queue: LedgerSource,
        mailbox: VersionSource,
        spawn: WorkerFactory,
        *,
        backoff: tuple[float, float] = (1.0, 30.0),
        tick_sec: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        keep_target: Callable[[int], None] = lambda workers: None,
    ) -> None:
        """`backoff`: seconds before the first restart, doubled after every further failure up to the second number.
        `keep_target` is told every new number of workers, by hand or by the queue's fill."""
        self._settings, self._prompts = settings, prompts
        self._queue = queue
        self._spawn = spawn
        self._backoff, self._tick_sec = backoff, tick_sec
        self._clock, self._keep_target = clock, keep_target
        self._changed = Wakeup()
        self._desk = WorkDesk(plan, queue, mailbox, self._changed)
        self._slots: dict[int, Slot] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._target = settings.initial
        self._ended: str | None = None
        self._failures = FailureBook(settings.max_errors)
        self._throughput = Throughput(clock)
        self._stall = StallClock(settings.stall_timeout_sec, clock)
        self._scaled_at = clock()

    def start(self) -> None:
        """Start the workers; returns at once."""
        watchers = (self._desk.watch_versions(), self._desk.watch_queue(), self._monitor())
        self._watchers = [self._guarded(asyncio.create_task(watcher)) for watcher in watchers]
        self._fill_slots()

    def set_target(self, workers: int) -> tuple[int, int]:
        """Grow or shrink to `workers`; returns the numbers before and after. Raises ValueError outside min..max."""
        if workers > self._settings.max:
            raise ValueError(f"{workers} workers asked for; rollout.workers.max is {self._settings.max}")
        if workers < self._settings.min:
            raise ValueError(f"{workers} workers asked for; rollout.workers.min is {self._settings.min}")
        before, self._target = self._target, workers
        self._keep_target(workers)
        self._fill_slots()
        return before, workers

    def status(self) -> str:
        """`running`, `stopped`, or `stalled: ..` / `failed: ..` with what each worker last did: the run is to end."""
        return self._ended or "running"

    async def stop(self, timeout_sec: float = 10.0) -> None:
        """Let workers finish their chunks for at most `timeout_sec`, then kill them."""
        self._end("stopped")
        self._cancel_unloaded(self._slots.values())
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_sec)
        leftover = [*tasks, *self._watchers]
        for task in leftover:
            task.cancel()
        await asyncio.gather(*leftover, return_exceptions=True)

    async def adapter_checksums(self) -> dict[str, str]:
        """Of every live worker by name, recomputed from its network. Raises WorkerDied or WorkerFailed."""
        live = [(slot.name, slot.worker) for slot in self._slots.values() if slot.alive and slot.worker is not None]
        checksums = await asyncio.gather(*(worker.adapter_sha256() for _, worker in live))
        return {name: checksum for (name, _), checksum in zip(live, checksums, strict=True)}

    def stats(self) -> dict[str, Any]:
        """Counts, rates and what every worker last did."""
        states = Counter(slot.state for slot in self._slots.values())
        return {
            "status": self.status(),
            "target": self._target,
            "min": self._settings.min,
            "max": self._settings.max,
            "alive": states["idle"] + states["busy"],
            "busy": states["busy"],
            "loading": states["loading"],
            "backing_off": states["backing off"],
            "deaths": self._failures.deaths,
            "restarts": self._failures.restarts,
            "next_ordinal": self._desk.book.next_ordinal,
            "chunks_in_flight": self._desk.book.in_flight,
            "version_step": -1 if self._desk.version is None else self._desk.version.step,
            **self._throughput.stats(),
            "workers": {slot.name: f"{slot.state}: {slot.last_action}" for slot in self._slots.values()},
        }

    # Workers

    def _fill_slots(self) -> None:
        """Open slots up to the target, or retire some: first those without a live worker, then the highest."""
        staying = sorted((s for s in self._slots.values() if not s.retiring), key=lambda s: (not s.alive, s.index))
        leaving = staying[self._target :]
        for slot in leaving:
            slot.retiring = True
        self._cancel_unloaded(leaving)
        for _ in range(self._target - len(staying)):
            index = next(n for n in range(len(self._slots) + 1) if n not in self._slots)
            slot = self._slots[index] = Slot(index)
            self._tasks[index] = self._guarded(asyncio.create_task(self._supervise(slot)))
            self._tasks[index].add_done_callback(functools.partial(self._vacate, slot))
        self._changed.fire()

    def _cancel_unloaded(self, slots: Iterable[Slot]) -> None:
        """Who has no worker that could finish a chunk need not be waited for: it may wait for resources for ever."""
        for slot in slots:
            if not slot.alive:
                self._tasks[slot.index].cancel()

    def _vacate(self, slot: Slot, _: asyncio.Task[None]) -> None:
        slot.state = "gone"
        if slot.retiring:
            del self._slots[slot.index], self._tasks[slot.index]
            self._changed.fire()

    def _wanted(self, slot: Slot) -> bool:
        return self._ended is None and not slot.retiring

    async def _supervise(self, slot: Slot) -> None:
        while self._wanted(slot):
            await self._live(slot)
            if slot.failures and self._wanted(slot):
                slot.state = "backing off"
                await self._changed.until(lambda: not self._wanted(slot), backoff_sec(slot.failures, *self._backoff))
                self._failures.restarts += self._wanted(slot)

    async def _live(self, slot: Slot) -> None:
        """One worker process from start to end."""
        slot.incarnation += 1
        slot.state, slot.last_action, slot.lost = "loading", "loading models", None
        slot.worker = worker = self._spawn(slot.name)
        chunk: Chunk | None = None
        try:
            await worker.load()
            self._failures.loaded()
            slot.state = "idle"
            while (chunk := await self._desk.next_chunk(lambda: self._wanted(slot) and not slot.lost)) is not None:
                await self._run(slot, worker, chunk)
                chunk = None
            if slot.lost:
                raise WorkerDied(slot.lost)
        except WorkerDied as error:
            self._failures.deaths += 1
            self._note_failure(slot, f"died while {slot.last_action}: {error}")
        except WorkerFailed as error:
            self._note_failure(slot, f"failed while {slot.last_action}: {error}")
            self._count_error(slot, chunk)
        finally:
            if chunk is not None:
                self._desk.give_back(chunk)
            slot.worker = None
            worker.kill()

    async def _run(self, slot: Slot, worker: WorkerHandle, chunk: Chunk) -> None:
        """Roll out one chunk and settle it. Raises WorkerDied or WorkerFailed with the chunk still in flight."""
        slot.state = "busy"
        slot.last_action = f"rolling out ordinals {chunk.ordinals[0]}..{chunk.ordinals[-1]}"
        report = await worker.run_chunk([self._prompts.item(n) for n in chunk.ordinals], chunk.batch)
        self._throughput.add(report)
        if report.refused:
            raise WorkerFailed(report.refused[0])
        if report.closed:
            self._end("stopped")
        elif await self._desk.settle(chunk, report):
            slot.failures = 0
            self._failures.settled(chunk.index)
        slot.state = "idle"

    def _note_failure(self, slot: Slot, what: str) -> None:
        slot.failures += 1
        slot.last_action = what
        logger.error("%s %s", slot.name, what)

    def _count_error(self, slot: Slot, chunk: Chunk | None) -> None:
        if chunk is None:
            if self._failures.load_failed() and not any(other.alive for other in self._slots.values()):
                self._end_badly("failed", f"workers cannot start; {slot.name} {slot.last_action}")
        elif self._failures.chunk_failed(chunk.index):
            self._end_badly("failed", f"{self._settings.max_errors} workers in turn; {slot.name} {slot.last_action}")

    # Watching

    async def _monitor(self) -> None:
        while self._ended is None:
            try:
                queue: Mapping[str, Any] | None = await asyncio.wait_for(self._queue.stats(), _ANSWER_SEC)
            except (asyncio.TimeoutError, PeerLost):
                queue = None
            await self._ask_workers()
            self._judge(queue)
            if queue is not None and self._settings.autoscale and self._clock() - self._scaled_at >= _AUTOSCALE_SEC:
                self._scaled_at = self._clock()
                self.set_target(autoscaled(self._settings, self._target, queue))
            await self._changed.until(lambda: self._ended is not None, self._tick_sec)

    async def _ask_workers(self) -> None:
        async def ask(slot: Slot, worker: WorkerHandle) -> None:
            try:
                answer = await asyncio.wait_for(worker.describe(), _ANSWER_SEC)
            except (asyncio.TimeoutError, WorkerFailed):
                return  # what it did last stays known
            except WorkerDied as error:
                if slot.worker is worker and slot.state == "idle":  # else its call tells the supervisor
                    slot.lost = str(error)
                    self._changed.fire()
                return
            if slot.worker is worker:
                slot.last_action = answer

        live = [(slot, slot.worker) for slot in self._slots.values() if slot.alive and slot.worker is not None]
        await asyncio.gather(*(ask(slot, worker) for slot, worker in live))

    def _judge(self, queue: Mapping[str, Any] | None) -> None:
        nothing_to_do = self._desk.book.in_flight == 0
        verdict = self._stall.look(
            alive=sum(slot.alive for slot in self._slots.values()),
            produced=None if queue is None else queue["produced"],
            waits_for_learner=nothing_to_do or queue is None or queue["waiting_producers"] > 0,
        )
        if verdict is not None and self._ended is None:
            self._end_badly("stalled", verdict)

    def _end_badly(self, kind: str, what: str) -> None:
        """Stop issuing work; the driver reads the status and ends the run."""
        workers = "; ".join(f"{slot.name} ({slot.state}): {slot.last_action}" for slot in self._slots.values())
        self._end(f"{kind}: {what}. Workers: {workers or 'none'}")
        logger.error("the rollout pool %s", self._ended)

    def _end(self, status: str) -> None:
        self._ended = self._ended or status
        self._changed.fire()

    def _guarded(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """An error in the pool's own code ends the run instead of vanishing with its task."""

        def look(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                logger.error("the rollout pool failed", exc_info=error)
                self._end_badly("failed", f"{type(error).__name__} in the pool: {error}")

        task.add_done_callback(look)
        return task
