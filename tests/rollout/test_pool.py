"""The pool without Ray: work is neither lost nor repeated for good, workers come and go, and a dead end is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import pytest

from configs.learner import AsyncSchedule, SyncSchedule
from configs.rollout import WorkersSection
from rollout.interfaces import ChunkReport
from rollout.issue import IssueBook
from rollout.ordinals import ChunkPlan, Ledger, OrdinalSet
from rollout.pool_gauges import StallClock, Throughput, autoscaled, backoff_sec
from rollout.records import PreferenceGroup
from tests.rollout.pool_fakes import FakeWorker, World, version

SYNC, ASYNC = SyncSchedule(), AsyncSchedule(max_staleness_steps=1000)


def run(scenario: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


async def train(world: World, batches: int, *, first: int = 0) -> list[list[int]]:
    """A learner of one rank: the ordinals of each batch. Publishes after every batch."""
    trained = []
    for batch in range(first, first + batches):
        payloads = await world.queue.take(batch, 0, 1, learner_step=batch)
        assert payloads is not None
        trained.append([PreferenceGroup.from_bytes(payload).ordinal for payload in payloads])
        await world.queue.retire(batch)
        world.mailbox.publish(version(batch + 1))
    return trained


# Bookkeeping


def test_an_ordinal_set_stays_a_number_and_a_few():
    done = OrdinalSet()
    done.update([3, 0, 1])
    assert (done.below, done.beyond, len(done)) == (2, (3,), 3)
    assert 0 in done and 2 not in done and 3 in done
    done.update([2, 7])
    assert (done.below, done.beyond) == (4, (7,))


def test_chunks_never_cross_a_batch_under_sync():
    sync, free = ChunkPlan(3, 8), ChunkPlan(3, None)
    assert [list(sync.chunk(n).ordinals) for n in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9, 10]]
    assert [sync.chunk(n).batch for n in range(4)] == [0, 0, 0, 1]
    assert [list(free.chunk(n).ordinals) for n in (0, 2)] == [[0, 1, 2], [6, 7, 8]]
    for plan in (sync, free):
        assert all(ordinal in plan.chunk(plan.index_of(ordinal)).ordinals for ordinal in range(50))


def test_the_book_issues_what_the_queue_lacks_and_nothing_twice():
    book = IssueBook(ChunkPlan(2, None))
    assert book.issue(version(0)) is None  # nothing is known yet
    book.follow(Ledger("one", done_below=2, known=(4, 5, 7)))
    assert book.issue(None) is None
    issued = [book.issue(version(0)) for _ in range(3)]
    assert [list(chunk.ordinals) for chunk in issued if chunk] == [[2, 3], [6, 7], [8, 9]]  # 6 is missing: both again
    book.give_back(issued[1])
    book.follow(Ledger("two", done_below=3, known=()))  # went back; [2, 3] and [8, 9] are still with workers
    again = [book.issue(version(0)) for _ in range(3)]
    assert [list(chunk.ordinals) for chunk in again if chunk] == [[4, 5], [6, 7], [10, 11]]


def test_the_book_issues_no_finished_chunk_for_a_ledger_written_before_it_arrived():
    book = IssueBook(ChunkPlan(2, 4))
    written = Ledger("one", done_below=4, known=())
    book.follow(written)
    first = book.issue(version(1))
    book.follow(written)  # the same again, by another way, while the only worker is busy
    book.finish(first)
    book.follow(written)
    assert [list(book.issue(version(1)).ordinals), book.issue(version(1))] == [[6, 7], None]
    book.follow(Ledger("two", done_below=4, known=()))  # the queue has lost it
    assert list(book.issue(version(1)).ordinals) == [4, 5]


def test_the_book_waits_for_the_batchs_own_version_and_stops_after_the_last():
    book = IssueBook(ChunkPlan(4, 4, max_batches=2))
    book.follow(Ledger("one", 0, ()))
    assert book.issue(version(1)) is None
    assert book.issue(version(0)).batch == 0
    assert book.issue(version(0)) is None
    assert book.issue(version(1)).batch == 1
    assert book.issue(version(2)) is None


# Producing


def test_async_workers_stay_busy_and_the_queue_gets_every_ordinal():
    async def scenario():
        world = World(ASYNC, initial=3, capacity_groups=8)
        world.pool.start()
        world.mailbox.publish(version(0))
        batches = await train(world, 10)
        await world.queue.close("the run is over")
        await world.pool.stop()
        ordinals = [ordinal for batch in batches for ordinal in batch]
        assert len(set(ordinals)) == 40 and max(ordinals) < 40 + 8 + 3 * 2 + 4
        stats = await world.queue.stats()
        assert stats["produced"] == stats["trained"] + stats["queued"] and stats["duplicates"] == 0
        assert world.pool.status() == "stopped" and all(worker.killed for worker in world.workers)

    run(scenario())


def test_nothing_starts_before_the_first_weights():
    async def scenario():
        world = World(ASYNC, initial=2)
        world.pool.start()
        await world.until(lambda: world.pool.stats()["alive"] == 2)
        assert world.started == []
        world.mailbox.publish(version(0))
        await world.until_started(2)
        await world.pool.stop(0)

    run(scenario())


def test_sync_batches_are_sampled_one_after_another_at_their_own_version():
    async def scenario():
        world = World(SYNC, initial=3, chunk_groups=3, max_batches=3)
        world.pool.start()
        world.mailbox.publish(version(0))
        assert await train(world, 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        assert sorted(ordinals for _, ordinals in world.started) == [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9, 10], [11]]
        stats = await world.queue.stats()
        assert (stats["refused"], stats["duplicates"], stats["produced"]) == ({}, 0, 12)
        await world.pool.stop()

    run(scenario())


# Faults


def test_a_dead_workers_chunk_is_rolled_out_by_another():
    async def scenario():
        world = World(SYNC, initial=2)
        world.pool.start()
        world.gate.clear()
        world.mailbox.publish(version(0))
        begun = dict(await world.until_started(2))
        victim = world.workers[0]
        victim.die()
        await world.until_spawned(3)
        world.gate.set()
        assert await train(world, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert victim.killed and world.workers[2].id == "rollout-0.2"
        assert sum(ordinals == begun[victim.id] for _, ordinals in world.started) == 2
        stats = world.pool.stats()
        assert (stats["deaths"], stats["restarts"], stats["alive"]) == (1, 1, 2)
        await world.pool.stop()

    run(scenario())


def test_an_idle_workers_death_is_noticed_before_there_is_work():
    async def scenario():
        world = World(SYNC, initial=2)
        world.pool.start()
        await world.until(lambda: world.pool.stats()["alive"] == 2)
        world.workers[1].die()
        await world.until_spawned(3)
        await world.until(lambda: world.pool.stats()["alive"] == 2)
        world.mailbox.publish(version(0))
        assert await train(world, 1) == [[0, 1, 2, 3]]
        assert "rollout-1.1" not in {worker for worker, _ in world.started}
        await world.pool.stop()

    run(scenario())


def test_workers_that_die_again_and_again_cost_nothing_but_time():
    async def scenario():
        world = World(ASYNC, initial=3, capacity_groups=8)
        world.pool.start()
        world.mailbox.publish(version(0))

        async def assassin() -> None:
            for kill in range(12):
                await world.until_started(2 * kill + 1)
                alive = [worker for worker in world.workers if not worker.killed and not worker.fate.done()]
                if alive:
                    alive[kill % len(alive)].die()

        killing = asyncio.create_task(assassin())
        batches = await train(world, 12)
        await killing
        ordinals = [ordinal for batch in batches for ordinal in batch]
        assert len(set(ordinals)) == 48
        stats = await world.queue.stats()
        assert stats["produced"] == stats["trained"] + stats["queued"]
        assert world.pool.stats()["deaths"] >= 10 and world.pool.status() == "running"
        await world.queue.close("over")
        await world.pool.stop()

    run(scenario())


def test_a_worker_that_delivers_garbage_is_replaced_and_its_chunk_repeated():
    async def scenario():
        world = World(SYNC, initial=1)
        world.spoil = lambda worker_id, payload: payload[:-9] if worker_id == "rollout-0.1" else payload
        world.pool.start()
        world.mailbox.publish(version(0))
        assert await train(world, 1) == [[0, 1, 2, 3]]
        assert [worker.id for worker in world.workers] == ["rollout-0.1", "rollout-0.2"]
        assert (await world.queue.stats())["refused"] == {"invalid": 2}
        await world.pool.stop()

    run(scenario())


def test_a_chunk_that_three_workers_cannot_roll_out_fails_the_run_with_the_error():
    async def scenario():
        world = World(SYNC, initial=1)

        world.gate.clear()
        world.pool.start()
        world.mailbox.publish(version(0))
        for attempt in range(3):
            await world.until_started(attempt + 1)
            world.workers[-1].fail("FloatingPointError: red-1 gave a non-finite score at t = 651: 'a prompt'")
        await world.until(lambda: world.pool.status() != "running")
        status = world.pool.status()
        assert status.startswith("failed: 3 workers in turn; rollout-0.3 failed while ")
        assert "non-finite score at t = 651: 'a prompt'" in status
        await world.pool.stop()

    run(scenario())


def test_models_that_cannot_be_loaded_fail_the_run():
    async def scenario():
        world = World(ASYNC, initial=1)

        async def missing(worker: FakeWorker) -> None:
            worker.fail("OSError: no model_index.json in /nowhere")

        world.on_load = missing
        world.pool.start()
        await world.until(lambda: world.pool.status() != "running")
        assert world.pool.status().startswith("failed: workers cannot start; rollout-0.3 failed while loading models")
        assert "no model_index.json in /nowhere" in world.pool.status()
        await world.pool.stop()

    run(scenario())


def test_no_live_worker_for_too_long_ends_the_run_with_what_each_last_did():
    async def scenario():
        world = World(ASYNC, initial=2, stall_timeout_sec=0.1)

        async def forever(worker: FakeWorker) -> None:
            await asyncio.Event().wait()

        world.on_load = forever
        world.pool.start()
        await world.until(lambda: world.pool.status() != "running")
        status = world.pool.status()
        assert status.startswith("stalled: no rollout worker has been alive for ")
        assert "rollout.workers.stall_timeout_sec = 0.1" in status
        assert "rollout-0.1 (loading): loading models; rollout-1.1 (loading): loading models" in status
        await world.pool.stop(0)

    run(scenario())


def test_workers_that_hang_end_the_run_too():
    async def scenario():
        world = World(ASYNC, initial=1, stall_timeout_sec=0.1)
        world.gate.clear()
        world.pool.start()
        world.mailbox.publish(version(0))
        await world.until(lambda: world.pool.status() != "running")
        assert world.pool.status().startswith("stalled: no group was produced for ")
        assert "rollout-0.1 (busy): rollout-0.1 describes itself" in world.pool.status()
        await world.pool.stop(0)

    run(scenario())


@pytest.mark.parametrize("schedule", [SYNC, ASYNC])
def test_workers_that_wait_for_the_learner_do_not_stall(schedule):
    async def scenario():
        world = World(schedule, initial=2, capacity_groups=4, stall_timeout_sec=0.05)
        world.pool.start()
        world.mailbox.publish(version(0))
        await world.queue.take(0, 0, 1, learner_step=0)
        await asyncio.sleep(0.3)  # the learner thinks: six times the stall timeout
        assert world.pool.status() == "running"
        await world.queue.close("over")
        await world.pool.stop()

    run(scenario())


def test_an_error_in_the_pools_own_code_is_not_swallowed():
    async def scenario():
        world = World(ASYNC, initial=1)

        async def broken() -> dict[str, int]:
            raise KeyError("produced")

        world.queue.stats = broken
        world.pool.start()
        await world.until(lambda: world.pool.status() != "running")
        assert world.pool.status().startswith("failed: KeyError in the pool")
        await world.pool.stop()

    run(scenario())


# Going back to a checkpoint


def test_after_the_queue_went_back_what_is_missing_is_rolled_out_again():
    async def scenario():
        world = World(SYNC, initial=2)
        world.pool.start()
        world.mailbox.publish(version(0))
        await train(world, 2)
        state = await world.queue.state_dict()
        await train(world, 2, first=2)
        world.mailbox.publish(version(2, attempt=1))  # the learner restarts from the checkpoint at batch 2
        await world.queue.load_state_dict(state)
        assert await train(world, 2, first=2) == [[8, 9, 10, 11], [12, 13, 14, 15]]
        stats = await world.queue.stats()
        assert stats["produced"] == stats["trained"] + stats["queued"] == 16
        await world.pool.stop()

    run(scenario())


def test_a_chunk_delivered_before_the_queue_lost_it_comes_again():
    async def scenario():
        world = World(ASYNC, initial=1)
        world.gate.clear()
        world.pool.start()
        world.mailbox.publish(version(0))
        await world.until_at_gate(1)
        await world.queue.load_state_dict(None)  # the worker is in the middle of ordinals 0, 1
        world.gate.set()
        await world.until_started(2)
        await world.queue.load_state_dict(None)  # and now its groups are lost
        trained = await train(world, 3)
        assert sorted(ordinal for batch in trained for ordinal in batch)[:2] == [0, 1]
        await world.queue.close("over")
        await world.pool.stop()

    run(scenario())


def test_groups_of_a_version_that_was_taken_back_are_sampled_anew():
    async def scenario():
        world = World(ASYNC, initial=1, groups_per_batch=2)
        world.pool.start()
        world.mailbox.publish(version(0))
        await train(world, 2)
        world.gate.clear()
        await world.until_at_gate(1)  # a chunk at the version of batch 2
        late = world.started[-1][1]
        state = await world.queue.state_dict()
        world.mailbox.publish(version(1, attempt=1))  # the learner starts again from batch 1
        await world.queue.load_state_dict(state)
        world.gate.set()
        await world.until_started(len(world.started) + 1)
        await world.until(lambda: late in [ordinals for _, ordinals in world.started[-2:]])
        stats = await world.queue.stats()
        assert stats["refused"] == {"superseded": 2} and world.pool.stats()["deaths"] == 0
        await world.queue.close("over")
        await world.pool.stop()

    run(scenario())


# Growing and shrinking


def test_the_pool_grows_and_shrinks_and_a_worker_that_goes_finishes_its_chunk():
    async def scenario():
        world = World(ASYNC, initial=2, min=1, max=4)
        world.gate.clear()
        world.pool.start()
        world.mailbox.publish(version(0))
        await world.until_started(2)
        assert world.pool.set_target(4) == (2, 4)
        await world.until_started(4)
        assert world.pool.set_target(1) == (4, 1)
        await asyncio.sleep(0)
        assert not any(worker.killed for worker in world.workers)  # all are in the middle of a chunk
        world.gate.set()
        await world.until(lambda: len(world.pool.stats()["workers"]) == 1)
        assert [worker.killed for worker in world.workers] == [False, True, True, True]
        assert set(range(8)) <= {*(await world.queue.ledger()).known}
        assert world.pool.set_target(2) == (1, 2)
        await world.until_spawned(5)
        assert world.workers[4].id == "rollout-1.1"
        await world.queue.close("over")
        await world.pool.stop()

    run(scenario())


def test_numbers_outside_the_bounds_are_refused_with_both():
    async def scenario():
        world = World(ASYNC, initial=2, min=2, max=4)
        with pytest.raises(ValueError, match=r"16 workers asked for; rollout\.workers\.max is 4"):
            world.pool.set_target(16)
        with pytest.raises(ValueError, match=r"1 workers asked for; rollout\.workers\.min is 2"):
            world.pool.set_target(1)

    run(scenario())


def test_workers_that_wait_for_resources_need_not_be_waited_for():
    async def scenario():
        world = World(ASYNC, initial=1, max=3)

        async def no_room(worker: FakeWorker) -> None:
            if worker.id != "rollout-0.1":
                await asyncio.Event().wait()

        world.on_load = no_room
        world.pool.start()
        world.mailbox.publish(version(0))
        world.pool.set_target(3)
        await world.until_spawned(3)
        world.pool.set_target(1)
        await world.until(lambda: len(world.pool.stats()["workers"]) == 1)
        assert [worker.killed for worker in world.workers] == [False, True, True]
        await world.queue.close("over")
        await world.pool.stop()

    run(scenario())


def test_idle_workers_go_at_once():
    async def scenario():
        world = World(SYNC, initial=3, chunk_groups=4, min=1)
        world.pool.start()
        world.mailbox.publish(version(0))
        await world.until(lambda: world.pool.stats()["alive"] == 3)
        world.pool.set_target(1)
        await world.until(lambda: len(world.pool.stats()["workers"]) == 1)
        assert await train(world, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        await world.pool.stop()

    run(scenario())


def test_stop_does_not_wait_for_ever_for_a_worker_that_is_held():
    async def scenario():
        world = World(ASYNC, initial=1, capacity_groups=4)
        world.pool.start()
        world.mailbox.publish(version(0))
        await world.until_started(3)  # the third chunk finds the queue full
        await asyncio.wait_for(world.pool.stop(timeout_sec=0.05), 5)
        assert world.workers[0].killed

    run(scenario())


# Gauges


def test_backoff_doubles_up_to_its_cap():
    assert [backoff_sec(failures, 1.0, 30.0) for failures in (1, 2, 3, 5, 6, 60)] == [1, 2, 4, 16, 30, 30]


def test_autoscaling_follows_who_waits_for_whom():
    settings = WorkersSection(min=1, max=3)
    starving = {"waiting_ranks": 1, "waiting_producers": 0, "fill": 0.1}
    full = {"waiting_ranks": 0, "waiting_producers": 2, "fill": 1.0}
    balanced = {"waiting_ranks": 0, "waiting_producers": 0, "fill": 0.5}
    assert [autoscaled(settings, n, starving) for n in (1, 3)] == [2, 3]
    assert [autoscaled(settings, n, full) for n in (3, 1)] == [2, 1]
    assert autoscaled(settings, 2, balanced) == 2


def test_the_pool_scales_itself_when_asked_to():
    async def scenario():
        world = World(ASYNC, initial=1, max=3, autoscale=True, groups_per_batch=100, pool={"clock": Clock(step=5)})
        world.gate.clear()
        world.pool.start()
        world.mailbox.publish(version(0))
        taking = asyncio.create_task(world.queue.take(0, 0, 1, learner_step=0))
        await world.until_started(3)
        assert world.pool.stats()["target"] == 3
        taking.cancel()
        await world.pool.stop(0)

    run(scenario())


class Clock:
    """Goes on by `step` seconds whenever it is read."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_the_stall_clock_runs_only_while_rollout_is_to_blame():
    clock = Clock()
    stall = StallClock(10, clock)

    def look(alive: int, produced: int | None, waits: bool, *, after: float) -> str | None:
        clock.now += after
        return stall.look(alive=alive, produced=produced, waits_for_learner=waits)

    assert look(1, 0, False, after=0) is None
    assert look(1, 3, False, after=9) is None
    assert look(1, 3, False, after=9) is None
    assert look(1, 3, True, after=9) is None  # held by a full queue
    assert look(1, None, False, after=9) is None  # the queue restarts
    assert look(1, 3, False, after=9) is None
    assert look(1, 3, False, after=9) == "no group was produced for 18 s (rollout.workers.stall_timeout_sec = 10)"
    assert look(0, 4, True, after=1) is None
    assert look(0, 4, True, after=10).startswith("no rollout worker has been alive for 11 s")


def test_throughput_counts_everything_and_rates_the_last_minute():
    clock = Clock()
    throughput = Throughput(clock)
    clock.now = 10
    throughput.add(ChunkReport("w", None, delivered=4, network_evaluations=80, scored_candidates=64))
    assert throughput.stats()["groups_per_sec"] == pytest.approx(0.4)
    clock.now = 100
    throughput.add(ChunkReport("w", None, delivered=2, network_evaluations=30, scored_candidates=6))
    stats = throughput.stats()
    assert (stats["produced_groups"], stats["scored_candidates"]) == (6, 70)
    assert stats["network_evaluations_per_sec"] == pytest.approx(0.5)
