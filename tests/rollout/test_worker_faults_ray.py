"""Real workers killed in each phase of their work, or delivering garbage: nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rollout.group_record import GroupHeader
from rollout.records import PreferenceGroup
from tests.chaos.observer import workers_of
from tests.polling import until
from tests.rollout.live import TIMEOUT_SEC, LiveRun, live_config, write_models

pytestmark = pytest.mark.timeout(600)
SYNC = {"schedule": {"type": "sync"}}
LONG_CHUNKS = {"noise": {"num_steps": 120, "guidance_scale": 2.0}}
"""Seconds of sampling, so that a kill falls into it."""
Start = Callable[..., LiveRun]


@pytest.fixture(scope="module")
def models(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    write_models(folder)
    return folder


@pytest.fixture
def start(models: Path) -> Iterator[Start]:
    runs: list[LiveRun] = []

    def begin(name: str, **sections: Any) -> LiveRun:
        runs.append(LiveRun(live_config(models, name, **sections)))
        return runs[-1]

    yield begin
    for run in runs:
        run.close()


def until_it_does(live: LiveRun, action: str) -> Any:
    """The only worker's actor, as soon as it says that it does this: asked itself, not the pool, which asks rarely."""
    live.until(lambda stats: stats["alive"] == 1)
    [actor] = ray.get(live.pool.actor.__ray_call__.remote(workers_of)).values()

    def does() -> str:
        return ray.get(actor.describe.remote())

    until(lambda: f": {action}" in does(), TIMEOUT_SEC, does, pause_sec=0.01)
    return actor


def kill(live: LiveRun, actor: Any) -> dict[str, Any]:
    """kill -9 of a worker; the queue's books once the pool has noticed."""
    pid = int(ray.get(actor.describe.remote()).split()[1])
    os.kill(pid, signal.SIGKILL)
    live.until(lambda stats: stats["deaths"] == 1)
    return live.queue.stats()


def assert_recovered(live: LiveRun) -> None:
    """The successor's network has the newest weights; the books close; every ordinal was trained once."""
    live.until(lambda stats: stats["alive"] == 1)
    published = live.mailbox.latest_version()
    live.until(lambda _: set(live.pool.adapter_checksums().values()) == {published.sha256})
    live.assert_books_close()
    assert sorted(live.trained) == list(range(len(live.trained)))
    assert live.pool.stats()["status"] == "running"


def test_a_worker_killed_while_it_samples(start):
    live = start("kill-sampling", **SYNC, **LONG_CHUNKS)
    books = kill(live, until_it_does(live, "sampling ordinals 0..1"))
    assert (books["produced"], books["waiting_producers"]) == (0, 0), "it had put nothing"
    groups = live.train(2)
    assert {group.worker for group in groups} == {"rollout-0.2"}
    assert_recovered(live)


def test_a_worker_killed_while_it_puts(start):
    live = start("kill-putting", queue={"capacity_groups": 2})
    actor = until_it_does(live, "putting group 2")
    until(lambda: live.queue.stats()["waiting_producers"], TIMEOUT_SEC, lambda: str(live.queue.stats()))
    books = kill(live, actor)
    assert books["produced"] == 2, "the queue was full"
    live.train(3)
    assert set(live.trained) == set(range(6))
    live.until(lambda stats: "rollout-0.2" in stats["workers"])
    live.assert_books_close()


def test_a_worker_killed_while_it_has_nothing_to_do(start):
    live = start("kill-idle", **SYNC)
    actor = until_it_does(live, "delivered ordinals 0..1")
    live.until(lambda stats: stats["busy"] == 0)
    books = kill(live, actor)
    assert (books["produced"], books["waiting_producers"]) == (2, 0)
    groups = live.train(2)
    assert [group.worker for group in groups] == 2 * ["rollout-0.1"] + 2 * ["rollout-0.2"]
    assert_recovered(live)


def test_two_workers_lost_at_once_and_then_a_slow_one_lose_nothing(start):
    live = start("two-at-once", schedule={"type": "async", "max_staleness_steps": 1000})
    live.pool.set_target(3)
    live.until(lambda stats: stats["alive"] == 3)
    live.until(lambda _: len(live.worker_pids()) == 3)
    pids = live.worker_pids()
    for name in ("rollout-0.1", "rollout-2.1"):
        os.kill(pids[name], signal.SIGKILL)
    live.until(lambda stats: stats["deaths"] == 2)
    slow, seen = "rollout-1.1", set[str]()
    while not seen >= {slow, "rollout-0.2", "rollout-2.2"}:
        seen |= {group.worker for group in live.train(1)}

    os.kill(pids[slow], signal.SIGSTOP)
    while slow in {group.worker for group in live.train(6)}:  # what it had delivered before comes first
        continue
    os.kill(pids[slow], signal.SIGCONT)
    late = live.train(1)
    while slow not in {group.worker for group in late}:
        late = live.train(1)
    so_far = max(live.trained)
    while set(range(so_far)) - set(live.trained):
        live.train(1)

    newest = live.mailbox.latest_version()
    while set(live.pool.adapter_checksums().values()) != {newest.sha256}:
        live.train(1, publish=False)  # each worker takes the newest weights before its next chunk
    assert live.assert_books_close()["dropped"] == {}
    assert live.pool.stats()["deaths"] == 2, "a slow worker is no lost one"


def wrong_shape(group: PreferenceGroup) -> PreferenceGroup:
    names = ("x_t", "x_prev_win", "x_prev_lose", "ref_mean_win", "ref_mean_lose")
    cut = {name: getattr(group, name)[..., :4, :4].clone() for name in names if getattr(group, name) is not None}
    return replace(group, **cut)


def not_a_number(group: PreferenceGroup) -> PreferenceGroup:
    group.scores[0, 0] = torch.nan  # after construction, which refuses it
    return group


def stale_checksum(group: PreferenceGroup) -> PreferenceGroup:
    return replace(group, adapter_sha256="e" * 64)


def spoil(actor: Any, how: Callable[[PreferenceGroup], PreferenceGroup], answers: Path) -> None:
    """Inside the worker's process: from now on it delivers garbage, and the queue's answers are noted."""
    worker = actor._worker
    queue = worker._queue

    class Spoiling:
        def put(self, payload: bytes, header: GroupHeader) -> str:
            group = how(PreferenceGroup.from_bytes(payload))
            data = group.to_bytes()
            answer: str = queue.put(data, group.header(len(data)))
            with answers.open("a") as file:
                file.write(f"{answer}\n")
            return answer

    worker._queue = Spoiling()


GARBAGE = [
    (wrong_shape, "invalid", "latents are (4, 4, 4); the learner's are"),
    (not_a_number, "invalid", "scores has non-finite values"),
    (stale_checksum, "unknown_version", "adapter eeeeeeeeeeee was never published"),
]


def test_garbage_of_a_real_worker_is_refused_by_name_and_rolled_out_by_another(start, tmp_path):
    live = start("garbage", **SYNC)
    refused = {"invalid": 0, "unknown_version": 0}
    for batch, (how, reason, words) in enumerate(GARBAGE):
        name = f"rollout-0.{batch + 1}"
        actor = until_it_does(live, f"delivered ordinals {2 * batch}..{2 * batch + 1}")  # idle: nothing is on its way
        answers = tmp_path / f"{name}.txt"
        ray.get(actor.__ray_call__.remote(spoil, how, answers))
        live.train(1)  # publishes: the next batch is sampled, and spoiled
        live.until(lambda stats, batch=batch: f"rollout-0.{batch + 2}" in stats["workers"])
        told = answers.read_text().splitlines()
        assert len(told) == 2 and all(line.startswith("refused: group ") for line in told)
        assert all(f"of {name}" in line and words in line for line in told), told
        refused[reason] += 2
        stats = live.queue.stats()
        assert {name: count for name, count in stats["refused"].items() if count} == {
            name: count for name, count in refused.items() if count
        }
    groups = live.train(1)
    assert {group.worker for group in groups} == {"rollout-0.4"}
    assert_recovered(live)
