"""`schedule: async` under kills: no ordinal trained twice, none lost, and rollouts held while the learner is away."""

from __future__ import annotations

import os
import signal
import time

import pytest

from learner.committed import list_committed, read_manifest
from learner.metrics_log import read_metrics
from learner.summary import read_summary
from tests.chaos.books import assert_each_once, committed_queue, missing
from tests.chaos.observer import Observer
from tests.learner.command import FINISH_SEC, Command, tiny_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * FINISH_SEC)]
ENDLESS = 10**6
RANK, WORKER = "ray::RayTrainWorker", "ray::RolloutWorkerActor"
TEARDOWN_SEC = 30
"""Within which the surviving rank of a group has to be gone, on a busy machine: it takes about three."""


@pytest.fixture
def settings(tmp_path):
    return [*tiny_settings(tmp_path), "schedule={type: async}", "rollout.workers.resources={cpus: 0.25}"]


def batch_of(run_dir):
    committed = list_committed(run_dir)
    return read_manifest(committed[-1])["counters"]["batch"] if committed else -1


def trained_steps(run_dir):
    log = run_dir / "metrics.jsonl"
    return [line["step"] for line in read_metrics(log) if "loss/total" in line] if log.exists() else []


def test_kills_and_resumes_train_no_ordinal_twice_and_lose_none(settings, tmp_path):
    def start(max_batches):
        given = [*settings, "run.name=ordinals", "rollout.workers.initial=2", f"learner.max_batches={max_batches}"]
        return Command(given, tmp_path / "run", "--resume", "auto")

    run_dir, lost = tmp_path / "run", []
    for _ in range(2):
        before = batch_of(run_dir)
        run = start(ENDLESS)
        run.until(lambda before=before: batch_of(run_dir) >= before + 4)
        run.kill_everything()
        state = committed_queue(run_dir)
        assert_each_once(state)
        lost.append(missing(state))
    last = batch_of(run_dir) + 6
    run = start(last)
    status, output = run.finish()
    assert status == 0, output
    run.assert_no_orphans()

    state, summary = committed_queue(run_dir), read_summary(run_dir / "summary.json")
    assert_each_once(state)
    assert summary.groups.trained == state.books.trained == 4 * last
    assert trained_steps(run_dir) == list(range(1, 2 * last + 1)), "no step twice, none missing"
    waiting = {header.ordinal for header, _ in state.groups}
    for ordinals in lost:
        assert all(n in state.done or n in waiting for n in ordinals), "what workers held at a kill came later"
    assert len(missing(state)) <= 2 * 2, "at most a chunk of each worker"


def test_one_lost_rank_takes_its_group_down_and_the_rollouts_wait_for_the_new_one(settings, tmp_path):
    """Two ranks, one killed: the other one would wait in a collective for ever."""
    limits = ["rollout.workers.initial=1", "queue.capacity_groups=4", "checkpoint.every_batches=2"]
    run = Command([*settings, *limits, "run.name=rank", f"learner.max_batches={ENDLESS}"], tmp_path / "run")
    run_dir = run.run_dir
    run.until(lambda: batch_of(run_dir) >= 4)
    observer = Observer(run.ray_address(), "rank")
    workers, ranks = run.pids(WORKER), run.pids(RANK)
    assert len(ranks) == 2 and len(workers) == 1
    before = trained_steps(run_dir)[-1]
    os.kill(ranks[0], signal.SIGKILL)
    killed = time.monotonic()
    run.until(lambda: not set(ranks) & set(run.pids(RANK)))
    assert time.monotonic() - killed < TEARDOWN_SEC

    def held():
        seen = observer.look()
        return seen if (seen.queue.get("waiting_producers"), seen.queue.get("groups")) == (1, 4) else None

    assert run.until(held).books_close, "the full queue holds the worker while the new group starts"
    assert run.pids(WORKER) == workers, "a held worker is not a lost one"

    after = run.until(lambda: trained_steps(run_dir)[-1] >= before + 6 and observer.look())
    assert after.books_close and after.queue["dropped"] == {}
    assert len(run.pids(RANK)) == 2 and run.pids(WORKER) == workers
    run.until(lambda: observer.look().adapters_agree)
    observer.close()
    run.process.send_signal(signal.SIGTERM)
    status, output = run.finish()
    assert status == 143, output
    run.assert_no_orphans()
    assert_each_once(committed_queue(run_dir))
    steps = trained_steps(run_dir)
    assert steps == list(range(1, len(steps) + 1))
