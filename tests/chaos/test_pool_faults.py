"""Workers that die while they put, two at once, that are slow, or deliver garbage: the real pool and the real queue."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace

import pytest

from configs.learner import AsyncSchedule, SyncSchedule
from rollout.records import PreferenceGroup
from tests.rollout.pool_fakes import World, version
from tests.rollout.test_pool import train
from tests.tiny import make_group

ASYNC = AsyncSchedule(max_staleness_steps=1000)


def run(scenario: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 120))


def flat(batches: list[list[int]]) -> list[int]:
    return [ordinal for batch in batches for ordinal in batch]


async def end(world: World, trained: list[list[int]]) -> None:
    """The books close, no ordinal was trained twice, and everything ends."""
    stats = await world.queue.stats()
    assert stats["produced"] == stats["trained"] + sum(stats["dropped"].values()) + stats["queued"]
    ordinals = flat(trained)
    assert stats["trained"] == len(ordinals) == len(set(ordinals))
    await world.queue.close("over")
    await world.pool.stop()


def test_a_worker_that_dies_while_a_full_queue_holds_it_loses_and_doubles_nothing():
    async def scenario():
        world = World(ASYNC, initial=1, capacity_groups=5)
        world.pool.start()
        world.mailbox.publish(version(0))
        while not (await world.queue.stats())["waiting_producers"]:  # three chunks of two: group 5 does not fit
            await asyncio.sleep(0.002)
        world.workers[0].die()
        await world.until_spawned(2)
        trained = await train(world, 3)
        assert sorted(flat(trained)) == list(range(12))
        assert world.pool.stats()["deaths"] == 1
        await end(world, trained)

    run(scenario())


def test_two_workers_that_die_at_once_lose_nothing():
    async def scenario():
        world = World(SyncSchedule(), initial=2)
        world.gate.clear()
        world.pool.start()
        world.mailbox.publish(version(0))
        await world.until_at_gate(2)
        for worker in list(world.workers):
            worker.die()
        await world.until_spawned(4)
        world.gate.set()
        trained = await train(world, 3)
        assert trained == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        assert world.pool.stats()["deaths"] == 2
        await end(world, trained)

    run(scenario())


def test_a_slow_worker_holds_up_no_other_and_its_groups_come_in_late():
    async def scenario():
        world = World(ASYNC, initial=2)
        slow = asyncio.Event()
        world.pool.start()
        await world.until_spawned(2)
        laggard = world.workers[0]
        usual = laggard._roll_out

        async def slowly(items, required_batch):
            await slow.wait()
            return await usual(items, required_batch)

        laggard._roll_out = slowly
        world.mailbox.publish(version(0))
        trained = await train(world, 4)
        [first] = [ordinals for worker, ordinals in world.started if worker == laggard.id]
        assert not set(first) & set(flat(trained)), "four batches came without it"
        slow.set()
        while set(first) - set(flat(trained)):
            trained += await train(world, 1, first=len(trained))
        assert world.pool.stats()["deaths"] == 0
        await end(world, trained)

    run(scenario())


def wrong_shape(group: PreferenceGroup) -> PreferenceGroup:
    names = ("x_t", "x_prev_win", "x_prev_lose", "ref_mean_win")
    return replace(group, **{name: getattr(group, name)[..., :4, :4].clone() for name in names})


def stale_checksum(group: PreferenceGroup) -> PreferenceGroup:
    return replace(group, adapter_sha256="e" * 64)


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (lambda group: wrong_shape(group).to_bytes(), "invalid", "latents are (4, 4, 4)"),
        (lambda group: group.to_bytes()[:-9], "invalid", "group 0 of rollout-0.1"),
        (lambda group: stale_checksum(group).to_bytes(), "unknown_version", "adapter eeeeeeeeeeee was never published"),
    ],
    ids=["wrong shape", "cut short", "stale checksum"],
)
def test_garbage_is_refused_with_the_workers_name_and_rolled_out_by_another(caplog, spoil, reason, words):
    async def scenario():
        world = World(SyncSchedule(), initial=1)
        put = world.queue.put

        async def spoiling(payload, header):
            group = PreferenceGroup.from_bytes(payload)
            if group.worker != "rollout-0.1":
                return await put(payload, header)
            data = spoil(group)
            sha = "e" * 64 if reason == "unknown_version" else header.adapter_sha256
            return await put(data, replace(header, nbytes=len(data), adapter_sha256=sha))

        world.queue.put = spoiling
        await world.queue.expect((4, 8, 8))
        world.pool.start()
        world.mailbox.publish(version(0))
        trained = await train(world, 1)
        assert trained == [[0, 1, 2, 3]]
        assert (await world.queue.stats())["refused"] == {reason: 2}
        assert world.workers[1].id == "rollout-0.2"
        await end(world, trained)

    run(scenario())
    assert words in caplog.text and "of rollout-0.1" in caplog.text


def test_a_value_that_is_not_a_number_never_becomes_a_group():
    """The record refuses it where it is made; bytes that hold one all the same are refused at the queue."""
    group = make_group()
    with pytest.raises(ValueError, match="score_win"):
        replace(group, score_win=group.score_win * float("nan"))
