"""The rollout side on a real Ray cluster with real processes: weights arrive, and kills lose nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import ray

from rollout.adapter import adapter_checksum, deserialise_adapter, serialise_adapter
from rollout.interfaces import QueueLost
from rollout.replay_actor import QueueClient, create_queue
from rollout.weights import AdapterVersion
from rollout.weights_actor import create_mailbox
from tests.polling import until
from tests.rollout.live import TIMEOUT_SEC, LiveRun, kill, live_config, live_run
from tests.tiny import make_group

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def live(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    with live_run(tmp_path_factory.mktemp("live"), "pool-test") as run:
        yield run


def of_the_second(groups):
    return [group for group in groups if group.worker == "rollout-1.1"]


def test_groups_arrive_and_every_worker_has_the_learners_weights(live):
    groups = live.train(2)
    assert {group.worker for group in groups} == {"rollout-0.1"}
    assert {group.prompt for group in groups} <= {"a red disc", "a blue ring", "a green cross"}
    live.pool.set_target(2)
    live.until(lambda stats: stats["alive"] == 2)
    version = live.mailbox.latest_version()
    later = []
    while set(live.pool.adapter_checksums().values()) != {version.sha256} or not of_the_second(later):
        later += live.train(1, publish=False)  # the next chunk of each worker takes the newest weights first
    assert {group.adapter_sha256 for group in of_the_second(later)} == {version.sha256}, "weights before any group"
    newest = live.train(8, publish=False)[-2:]  # what the queue held before is gone by then
    assert {group.adapter_sha256 for group in newest} == {version.sha256}
    stats = live.pool.stats()
    assert stats["produced_groups"] >= 8 and stats["scored_candidates"] >= 8 * 4
    assert stats["network_evaluations"] > stats["scored_candidates"]
    live.assert_books_close()


def test_a_killed_worker_is_replaced_and_nothing_is_lost(live):
    live.until(lambda stats: stats["alive"] == 2)
    victim = live.until(lambda _: len(live.worker_pids()) == 2) and live.worker_pids()["rollout-0.1"]
    os.kill(victim, signal.SIGKILL)
    live.until(lambda stats: stats["deaths"] == 1 and stats["alive"] == 2)
    issued = live.pool.stats()["next_ordinal"]
    groups = live.train_all_below(issued)
    while "rollout-0.2" not in {group.worker for group in groups}:
        groups += live.train(1)
    live.assert_books_close()


def test_a_killed_mailbox_serves_the_same_weights_again(live):
    version = live.mailbox.latest_version()
    kill(live.mailbox.actor)
    assert live.mailbox.latest_version() == version
    fetched, data = live.mailbox.fetch(None)
    assert fetched == version and adapter_checksum(deserialise_adapter(data)) == version.sha256
    live.train(5)
    assert live.pool.stats()["status"] == "running"
    live.assert_books_close()


def test_a_killed_queue_says_so_and_goes_on_from_the_checkpoint(live):
    state, batch, trained = live.queue.state_dict(), live.batch, list(live.trained)
    live.train(2)
    kill(live.queue.actor)
    with pytest.raises(QueueLost, match="lost its groups"):
        live.train(1)
    live.batch, live.trained, live.attempt = batch, trained, live.attempt + 1  # the learner goes back
    live.publish()
    live.queue.load_state_dict(state)
    live.train(6)
    stats = live.assert_books_close()
    assert stats["trained"] == len(live.trained) and live.pool.stats()["status"] == "running"


def test_a_killed_pool_starts_new_workers_and_misses_no_ordinal(live):
    issued = live.pool.stats()["next_ordinal"]
    kill(live.pool.actor)
    live.train_all_below(issued)
    assert live.pool.status() == "running"
    live.assert_books_close()


def test_held_producers_do_not_block_ranks_and_shards_that_die_lose_nothing_for_good(ray_cluster, tmp_path):
    config = live_config(tmp_path, "shard-test", queue={"capacity_groups": 4, "shards": 2})
    mailbox = create_mailbox(config)
    actor = create_queue(config)
    queue = QueueClient(actor)
    for handle in (actor, mailbox):  # Ray leaves GPUs visible to actors that ask for none
        assert ray.get(handle.__ray_call__.remote(lambda _: os.environ["CUDA_VISIBLE_DEVICES"])) == ""
    first = make_group(0)
    published = {"block.lora_A.weight": first.x_t}
    version = AdapterVersion(0, 0, 0, adapter_checksum(published))
    ray.get(mailbox.publish.remote(version, serialise_adapter(published)))
    sent = {}
    for ordinal in range(12):
        group = make_group(ordinal, adapter_sha256=version.sha256)
        payload = group.to_bytes()
        sent[ordinal] = (payload, group.header(len(payload)))
    for ordinal in range(4):
        assert queue.put(*sent[ordinal]) == "stored"
    held = [actor.put.remote(*sent[ordinal]) for ordinal in range(4, 12)]
    until(lambda: queue.stats()["waiting_producers"] >= 8, TIMEOUT_SEC, lambda: str(queue.stats()))
    assert queue.take(0, 1, 2, 0) == [sent[1][0]] and queue.take(0, 0, 2, 0) == [sent[0][0]]
    first, _ = ray.wait(held, num_returns=2)
    assert ray.get(first) == ["stored", "stored"]
    stats = queue.stats()
    assert (stats["groups"], stats["waiting_producers"]) == (4, 6)
    victim = ray.get(actor.__ray_call__.remote(lambda self: self._queue._store.shards[0]))
    epoch = ray.get(actor.ledger.remote()).epoch
    kill(victim)
    taking = actor.take.remote(1, 0, 1, 0)  # groups 2 and 3, one of them in each shard
    [lost] = {2, 3} - set(ray.get(actor.ledger.remote(epoch)).known)
    assert queue.put(*sent[lost]) == "stored"
    assert ray.get(taking) == [sent[2][0], sent[3][0]]
    stats = queue.stats()
    assert stats["dropped"] == {"lost": 1}
    assert stats["produced"] == stats["trained"] + 1 + stats["queued"]
    for handle in (actor, mailbox):
        ray.kill(handle)
