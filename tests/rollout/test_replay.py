"""The replay queue without Ray: what it admits, holds, hands out, drops and remembers. No sleeps."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from configs.learner import AsyncSchedule, SyncSchedule
from configs.rollout import QueueSection
from rollout.group_record import GroupHeader
from rollout.interfaces import PayloadLost, QueueLost
from rollout.records import PreferenceGroup
from rollout.replay import ReplayQueue
from rollout.replay_store import LocalStore
from rollout.weights import AdapterVersion
from tests.tiny import make_group

SYNC, ASYNC = SyncSchedule(), AsyncSchedule(max_staleness_steps=4)
ROOMY = QueueSection(capacity_groups=64, capacity_bytes=2**30)


class Versions:
    """A mailbox's history; counts how often it was asked."""

    def __init__(self, *versions: AdapterVersion) -> None:
        self.versions = list(versions)
        self.asked = 0

    async def history(self) -> Sequence[AdapterVersion]:
        self.asked += 1
        return list(self.versions)


def version(batch: int, *, step: int | None = None, sha256: str | None = None) -> AdapterVersion:
    step = batch if step is None else step
    return AdapterVersion(step=step, batch=batch, attempt=0, sha256=sha256 or f"{step:064d}")


def message(ordinal: int, step: int = 0, **changes: Any) -> tuple[bytes, GroupHeader]:
    """Bytes and header of a group sampled at `step`."""
    group = make_group(ordinal, policy_step=step, adapter_sha256=f"{step:064d}", **changes)
    payload = group.to_bytes()
    return payload, group.header(len(payload))


def ordinals(payloads: list[bytes] | None) -> list[int]:
    assert payloads is not None
    return [PreferenceGroup.from_bytes(payload).ordinal for payload in payloads]


async def settle() -> None:
    """Let every task run until all of them wait for something else to happen."""
    for _ in range(20):
        await asyncio.sleep(0)


async def start(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(coroutine)
    await settle()
    return task


async def assert_books_close(queue: ReplayQueue) -> dict[str, Any]:
    stats = await queue.stats()
    assert stats["produced"] == stats["trained"] + sum(stats["dropped"].values()) + stats["queued"]
    return stats


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


# Handing out


def test_sync_batches_are_exact_ranges_shared_by_ordinal():
    async def scenario():
        queue = ReplayQueue(ROOMY, SYNC, groups_per_batch=4)
        for ordinal in (3, 0, 2):
            assert await queue.put(*message(ordinal)) == "stored"
        ranks = [await start(queue.take(0, rank, 2, learner_step=0)) for rank in range(2)]
        assert not any(task.done() for task in ranks)
        assert await queue.put(*message(1)) == "stored"
        assert [ordinals(await task) for task in ranks] == [[0, 1], [2, 3]]
        assert ordinals(await queue.take(0, 1, 2, learner_step=0)) == [2, 3]  # again
        assert (await assert_books_close(queue))["queued"] == 4  # taken is not yet trained
        await start(queue.take(1, 0, 2, learner_step=1))
        stats = await assert_books_close(queue)
        assert (stats["trained"], stats["pairs_trained"], stats["batch"], stats["waiting_ranks"]) == (4, 12, 1, 1)

    run(scenario())


def test_async_batches_are_the_first_arrivals_and_what_was_learned_is_never_taken_twice():
    async def scenario():
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=2)
        for ordinal in (5, 1, 9, 0):
            await queue.put(*message(ordinal))
        assert ordinals(await queue.take(0, 0, 1, learner_step=0)) == [1, 5]
        assert ordinals(await queue.take(1, 0, 1, learner_step=1)) == [0, 9]
        assert await queue.put(*message(5)) == "duplicate"  # trained
        assert await queue.put(*message(9)) == "duplicate"  # in training
        await queue.retire(1)
        await queue.retire(1)
        stats = await assert_books_close(queue)
        assert (stats["trained"], stats["duplicates"], stats["queued"]) == (4, 2, 0)

    run(scenario())


def test_a_batch_out_of_turn_and_uneven_shares_are_errors():
    async def scenario():
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=2)
        for ordinal in range(4):
            await queue.put(*message(ordinal))
        with pytest.raises(ValueError, match="batch 1 was asked for, but the queue is at batch 0"):
            await queue.take(1, 0, 1, learner_step=0)
        with pytest.raises(ValueError, match="rank 0 of 3 has no even share of 2 groups"):
            await queue.take(0, 0, 3, learner_step=0)
        with pytest.raises(ValueError, match="batch 0 cannot be retired"):
            await queue.retire(0)
        await queue.take(0, 0, 1, learner_step=0)
        await queue.take(1, 0, 1, learner_step=0)
        with pytest.raises(ValueError, match="batch 0 was asked for, but the queue is at batch 1"):
            await queue.take(0, 0, 1, learner_step=0)

    run(scenario())


# Back-pressure


def test_a_queue_full_by_groups_holds_producers_and_loses_nothing():
    async def scenario():
        queue = ReplayQueue(QueueSection(capacity_groups=2), ASYNC, groups_per_batch=2)
        await queue.put(*message(0))
        await queue.put(*message(1))
        held = [await start(queue.put(*message(ordinal))) for ordinal in (2, 3, 4)]
        stats = await assert_books_close(queue)
        assert (stats["waiting_producers"], stats["groups"], stats["fill"]) == (3, 2, 1.0)
        assert ordinals(await queue.take(0, 0, 1, learner_step=0)) == [0, 1]
        await settle()
        assert [task.done() for task in held] == [True, True, False]
        assert ordinals(await queue.take(1, 0, 1, learner_step=0)) == [2, 3]
        assert await held[2] == "stored"
        stats = await assert_books_close(queue)
        assert (stats["produced"], stats["waiting_producers"]) == (5, 0)
        assert stats["producer_wait_sec"] > 0

    run(scenario())


def test_a_queue_full_by_bytes_holds_producers():
    async def scenario():
        size = len(message(0)[0])
        queue = ReplayQueue(QueueSection(capacity_groups=64, capacity_bytes=3 * size), ASYNC, groups_per_batch=1)
        for ordinal in range(3):
            await queue.put(*message(ordinal))
        held = await start(queue.put(*message(3)))
        assert (await queue.stats())["bytes"] == 3 * size and not held.done()
        await queue.take(0, 0, 1, learner_step=0)
        assert await held == "stored"

    run(scenario())


def test_a_group_that_can_never_fit_is_refused_with_both_numbers():
    async def scenario():
        queue = ReplayQueue(QueueSection(capacity_bytes=1000), ASYNC, groups_per_batch=1)
        payload, header = message(0, worker="rollout-7.1")
        answer = await queue.put(payload, header)
        assert answer == f"refused: group 0 of rollout-7.1 has {len(payload)} bytes; queue.capacity_bytes is 1000"

    run(scenario())


def test_a_byte_bound_below_one_batch_cannot_deadlock_a_waiting_learner():
    async def scenario():
        size = len(message(0)[0])
        queue = ReplayQueue(QueueSection(capacity_bytes=size), ASYNC, groups_per_batch=3)
        puts = [await start(queue.put(*message(ordinal))) for ordinal in range(4)]
        assert [task.done() for task in puts] == [True, False, False, False]
        assert ordinals(await queue.take(0, 0, 1, learner_step=0)) == [0, 1, 2]
        assert await puts[3] == "stored"

    run(scenario())


def test_sync_admits_the_batch_that_the_learner_needs_even_when_full():
    async def scenario():
        queue = ReplayQueue(QueueSection(capacity_groups=1), SYNC, groups_per_batch=3)
        for ordinal in range(3):
            assert await queue.put(*message(ordinal)) == "stored"
        assert ordinals(await queue.take(0, 0, 1, learner_step=0)) == [0, 1, 2]

    run(scenario())


def test_the_same_ordinal_held_twice_is_stored_once():
    async def scenario():
        queue = ReplayQueue(QueueSection(capacity_groups=1), ASYNC, groups_per_batch=1)
        await queue.put(*message(0))
        twice = [await start(queue.put(*message(1))) for _ in range(2)]
        await queue.take(0, 0, 1, learner_step=0)
        assert [await task for task in twice] == ["stored", "duplicate"]

    run(scenario())


# Staleness


def test_groups_that_grew_too_old_are_dropped_counted_and_not_wanted_again():
    async def scenario():
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=2)
        for ordinal, step in ((0, 0), (1, 3), (2, 4)):
            await queue.put(*message(ordinal, step))
        assert ordinals(await queue.take(0, 0, 1, learner_step=5)) == [1, 2]  # group 0 is 5 steps old, 4 are allowed
        stats = await assert_books_close(queue)
        assert stats["dropped"] == {"stale": 1}
        assert (stats["mean_staleness"], stats["max_staleness"]) == (1.5, 2)
        assert await queue.put(*message(0)) == "duplicate"
        assert (await queue.put(*message(7, 0))).startswith("dropped: group 7 of worker-0 at step 0 is too old")
        assert (await assert_books_close(queue))["dropped"] == {"stale": 2}

    run(scenario())


def test_dropping_old_groups_makes_room_for_held_ones():
    async def scenario():
        queue = ReplayQueue(QueueSection(capacity_groups=2), ASYNC, groups_per_batch=2)
        await queue.put(*message(0, 0))
        await queue.put(*message(1, 0))
        held = [await start(queue.put(*message(ordinal, 9))) for ordinal in (2, 3)]
        assert ordinals(await queue.take(0, 0, 1, learner_step=9)) == [2, 3]
        assert [await task for task in held] == ["stored", "stored"]

    run(scenario())


# What is refused


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda payload, header: (payload[:-10], replace(header, nbytes=header.nbytes - 10)), "not a preference group"),
        (lambda payload, header: (b"\x80\x04pickle", header), "not a preference group"),
        (lambda payload, header: (payload, replace(header, ordinal=4)), "its bytes say"),
        (lambda payload, header: (payload, replace(header, num_pairs=9)), "its bytes say"),
        (lambda payload, header: message(3, worker="rollout-1.1", latent=(4, 4, 4)), r"latents are \(4, 4, 4\)"),
    ],
)
def test_bad_groups_are_refused_by_name_and_take_no_place(spoil, fault):
    async def scenario():
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=1)
        await queue.expect((4, 8, 8))
        payload, header = message(3, worker="rollout-1.1")
        answer = await queue.put(*spoil(payload, header))
        assert answer.startswith("refused: group ") and "of rollout-1.1" in answer
        assert re.search(fault, answer)
        stats = await assert_books_close(queue)
        assert (stats["refused"], stats["produced"]) == ({"invalid": 1}, 0)
        assert await queue.put(payload, header) == "stored"

    run(scenario())


def test_non_finite_values_are_refused_with_the_field():
    async def scenario():
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=1)
        group = make_group(3, worker="rollout-1.1")
        group.score_win[1] = torch.nan  # after construction: a worker whose memory went bad
        payload = group.to_bytes()
        answer = await queue.put(payload, group.header(len(payload)))
        assert answer.startswith("refused: group 3 of rollout-1.1: score_win has non-finite values")

    run(scenario())


def test_an_adapter_that_was_never_published_is_refused_and_a_new_one_is_asked_for():
    async def scenario():
        mailbox = Versions(version(0))
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=1, versions=mailbox)
        assert await queue.put(*message(0, 0)) == "stored"
        mailbox.versions.append(version(1))
        assert await queue.put(*message(1, 1)) == "stored"
        assert await queue.put(*message(2, 1)) == "stored"
        assert mailbox.asked == 2
        answer = await queue.put(*message(3, 8, worker="rollout-2.1"))
        assert answer.startswith("refused: group 3 of rollout-2.1") and answer.endswith("was never published")
        assert (await assert_books_close(queue))["refused"] == {"unknown_version": 1}

    run(scenario())


def test_sync_wants_every_batch_at_its_own_version():
    async def scenario():
        mailbox = Versions(version(0))
        queue = ReplayQueue(ROOMY, SYNC, groups_per_batch=2, versions=mailbox)
        for ordinal in (0, 1):
            assert await queue.put(*message(ordinal, 0)) == "stored"
        assert (await queue.put(*message(2, 0))).startswith("superseded: group 2 of worker-0 at step 0 is for batch 1")
        await queue.take(0, 0, 1, learner_step=0)
        mailbox.versions.append(version(1, step=1))
        assert (await queue.put(*message(2, 0))).startswith("superseded")
        assert await queue.put(*message(2, 1)) == "stored"
        assert (await queue.put(*message(5, 1))).startswith("superseded: group 5 of worker-0 at step 1 is for batch 2")

    run(scenario())


def test_sync_goes_on_when_a_batch_made_no_update():
    async def scenario():
        mailbox = Versions(version(0))
        queue = ReplayQueue(ROOMY, SYNC, groups_per_batch=1, versions=mailbox)
        await queue.put(*message(0, 0))
        await queue.take(0, 0, 1, learner_step=0)
        mailbox.versions.append(version(1, step=0))  # published again, unchanged
        assert await queue.put(*message(1, 0)) == "stored"

    run(scenario())


# Checkpoints and restarts


def test_a_reloaded_queue_goes_on_where_the_checkpoint_was_taken():
    async def scenario():
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=2)
        for ordinal in (4, 0, 6, 2, 3):
            await queue.put(*message(ordinal))
        await queue.take(0, 0, 1, learner_step=0)
        await queue.take(1, 0, 1, learner_step=1)  # 0, 4 trained; 2, 6 taken; 3 waits
        state = await queue.state_dict()
        other = ReplayQueue(ROOMY, ASYNC, groups_per_batch=2, awaiting_state=True)
        await other.load_state_dict(state)
        assert await other.state_dict() == state
        stats = await assert_books_close(other)
        assert (stats["produced"], stats["trained"], stats["queued"], stats["batch"]) == (5, 2, 3, 1)
        assert ordinals(await other.take(1, 0, 1, learner_step=1)) == [2, 6]
        assert await other.put(*message(4)) == "duplicate"
        ledger = await other.ledger()
        assert ledger is not None and (ledger.done_below, ledger.known) == (1, (2, 3, 4, 6))

    run(scenario())


def test_a_restarted_queue_holds_producers_and_says_so_to_ranks_until_it_has_a_state():
    async def scenario():
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=1, awaiting_state=True)
        held = await start(queue.put(*message(0)))
        pool = await start(queue.ledger())
        for call in (queue.take(0, 0, 1, learner_step=0), queue.retire(0), queue.state_dict()):
            with pytest.raises(QueueLost, match="lost its groups"):
                await call
        assert not held.done() and not pool.done()
        await queue.load_state_dict(None)
        assert await held == "stored"
        assert (await pool).done_below == 0

    run(scenario())


def test_a_rank_of_a_learner_that_is_gone_does_not_move_the_new_ones_batches():
    async def scenario():
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=1)
        await queue.put(*message(0))
        state = await queue.state_dict()
        await queue.take(0, 0, 1, learner_step=0)
        orphan = await start(queue.take(1, 0, 1, learner_step=1))
        await queue.load_state_dict(state)
        with pytest.raises(QueueLost, match="replaced while this rank waited"):
            await orphan
        await queue.take(0, 0, 1, learner_step=0)
        stats = await assert_books_close(queue)
        assert (stats["trained"], stats["queued"]) == (0, 1)

    run(scenario())


def test_after_going_back_versions_of_the_abandoned_attempt_are_superseded():
    async def scenario():
        mailbox = Versions(version(0), version(1), version(2))
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=1, versions=mailbox)
        await queue.put(*message(0, 2))
        mailbox.versions.append(replace(version(1), attempt=1))  # the learner starts again from batch 1
        await queue.load_state_dict(None)
        assert (await queue.put(*message(0, 2))).startswith("superseded: group 0 of worker-0 at step 2")
        assert await queue.put(*message(0, 1)) == "stored"

    run(scenario())


def test_a_held_group_of_a_version_in_force_outlasts_the_learners_restart():
    """Its version was asked for before the queue forgot what it knew: it has to be asked for again."""

    async def scenario():
        mailbox = Versions(version(0))
        queue = ReplayQueue(QueueSection(capacity_groups=1), ASYNC, groups_per_batch=1, versions=mailbox)
        await queue.put(*message(0))
        state = await queue.state_dict()
        mailbox.versions.append(version(1))
        held = await start(queue.put(*message(1, 1)))
        mailbox.versions.append(replace(version(1), attempt=1))  # the learner starts again, from batch 1
        await queue.load_state_dict(state)
        await queue.take(0, 0, 1, learner_step=1)
        assert await held == "stored"
        assert (await assert_books_close(queue))["refused"] == {}

    run(scenario())


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (ReplayQueue(ROOMY, SYNC, groups_per_batch=2), "schedule = async; this run has sync"),
        (ReplayQueue(ROOMY, ASYNC, groups_per_batch=3), "groups_per_batch = 2; this run has 3"),
    ],
)
def test_another_runs_state_is_refused_and_changes_nothing(other, fault):
    async def scenario():
        state = await ReplayQueue(ROOMY, ASYNC, groups_per_batch=2).state_dict()
        await other.put(*message(0))
        with pytest.raises(ValueError, match=fault):
            await other.load_state_dict(state)
        with pytest.raises(ValueError, match="not the state of a replay queue"):
            await other.load_state_dict(state[:40])
        assert (await other.stats())["queued"] == 1

    run(scenario())


def test_the_pool_hears_of_replaced_contents():
    async def scenario():
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=1)
        await queue.put(*message(1))
        first = await queue.ledger()
        assert first is not None and (first.done_below, first.known) == (0, (1,))
        assert await queue.ledger(first.epoch, timeout_sec=0.01) is None
        changed = await start(queue.ledger(first.epoch))
        await queue.load_state_dict(None)
        assert (await changed).known == ()

    run(scenario())


# Payload stores


class SlowStore(LocalStore):
    """Stores when told to, and forgets on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.lost: set[int] = set()

    async def put(self, key: int, payload: bytes) -> None:
        await self.gate.wait()
        await super().put(key, payload)

    async def get(self, keys: Sequence[int]) -> list[bytes]:
        if gone := self.lost.intersection(keys):
            raise PayloadLost(sorted(gone))
        return await super().get(keys)


def test_payloads_on_their_way_count_and_their_twins_wait():
    async def scenario():
        store = SlowStore()
        queue = ReplayQueue(QueueSection(capacity_groups=1), ASYNC, groups_per_batch=1, store=store)
        store.gate.clear()
        first, twin, other = [await start(queue.put(*message(ordinal))) for ordinal in (0, 0, 1)]
        assert (await queue.stats())["queued"] == 0
        store.gate.set()
        assert (await first, await twin) == ("stored", "duplicate")
        assert not other.done()
        await queue.take(0, 0, 1, learner_step=0)
        assert await other == "stored"

    run(scenario())


def test_a_payload_that_arrives_after_a_reload_is_judged_anew():
    async def scenario():
        store = SlowStore()
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=1, store=store)
        store.gate.clear()
        late = await start(queue.put(*message(0)))
        await queue.load_state_dict(None)
        store.gate.set()
        assert await late == "stored"
        assert (await assert_books_close(queue))["produced"] == 1
        assert ordinals(await queue.take(0, 0, 1, learner_step=0)) == [0]

    run(scenario())


def test_groups_lost_with_a_shard_are_dropped_and_wanted_again():
    async def scenario():
        store = SlowStore()
        queue = ReplayQueue(ROOMY, ASYNC, groups_per_batch=2, store=store)
        for ordinal in range(3):
            await queue.put(*message(ordinal))
        before = await queue.ledger()
        store.lost = {1}
        taking = await start(queue.take(0, 0, 1, learner_step=0))
        after = await queue.ledger()
        assert after.epoch != before.epoch and after.known == (0, 2)
        assert await queue.put(*message(1)) == "stored"
        assert ordinals(await taking) == [0, 1]
        stats = await assert_books_close(queue)
        assert stats["dropped"] == {"lost": 1} and stats["produced"] == 4

    run(scenario())


# The end


def test_close_wakes_every_waiter_with_the_reason():
    async def scenario():
        queue = ReplayQueue(QueueSection(capacity_groups=1), ASYNC, groups_per_batch=2)
        await queue.put(*message(0))
        held = await start(queue.put(*message(1)))
        assert ordinals(await queue.take(0, 0, 1, learner_step=0)) == [0, 1] and await held == "stored"
        rank = await start(queue.take(1, 0, 1, learner_step=0))
        pool = await start(queue.ledger("another"))
        await queue.put(*message(2))
        await queue.close("the run is over")
        assert await rank is None
        assert await queue.put(*message(3)) == "closed: the run is over"
        assert await queue.take(1, 0, 1, learner_step=0) is None
        assert pool.done()
        assert (await assert_books_close(queue))["closed"] == "the run is over"

    run(scenario())


def test_close_releases_held_producers():
    async def scenario():
        queue = ReplayQueue(QueueSection(capacity_groups=1), ASYNC, groups_per_batch=1)
        await queue.put(*message(0))
        held = await start(queue.put(*message(1)))
        await queue.close("interrupted")
        assert await held == "closed: interrupted"
        assert (await assert_books_close(queue))["waiting_producers"] == 0

    run(scenario())
