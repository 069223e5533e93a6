"""python -m rollout.scale as a real process against a live pool."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray

from learner import main
from tests.rollout.live import LiveRun, kill, live_run

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def live(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    with live_run(tmp_path_factory.mktemp("live"), "scale-test") as run:
        yield run


def scale(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rollout.scale", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


def test_workers_are_added_and_taken_away_while_the_run_goes_on(live, ray_cluster):
    live.until(lambda stats: stats["alive"] == 1)
    grown = scale("3", "--run", "scale-test", "--address", ray_cluster)
    assert (grown.returncode, grown.stdout.strip()[:40]) == (0, "rollout workers of scale-test: 1 -> 3 (1")
    live.until(lambda stats: stats["alive"] == 3)
    first = live.mailbox.latest_version()
    seen: set[str] = set()
    while len(seen) < 3:  # the newcomers take the current weights before they produce
        groups = live.train(1, publish=False)
        assert {group.adapter_sha256 for group in groups} == {first.sha256}
        seen |= {group.worker for group in groups}
    kill(live.pool.actor)
    live.until(lambda stats: stats["alive"] == 3)  # a pool that is started again keeps as many as it was told to
    shrunk = scale("1", "--run", "scale-test", RAY_ADDRESS=ray_cluster)
    assert shrunk.stdout.startswith("rollout workers of scale-test: 3 -> 1 ("), shrunk.stderr
    while live.pool.stats()["alive"] > 1:
        live.train(1)  # those that go finish their chunk, which the full queue holds
    live.train(4)
    live.assert_books_close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["16", "--run", "scale-test"], "error: 16 workers asked for; rollout.workers.max is 3"),
        (["0", "--run", "scale-test"], "error: 0 workers asked for; rollout.workers.min is 1"),
        (["2", "--run", "another"], "error: no run named 'another' on this cluster; running: scale-test"),
        (["2", "--run", "scale-test", "--namespace", "elsewhere"], "on this cluster; running: none"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(live, ray_cluster, arguments, message):
    done = scale(*arguments, "--address", ray_cluster)
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert live.pool.stats()["target"] == 1


def test_no_cluster_is_one_clear_line():
    done = scale("2", "--run", "scale-test", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "error: no Ray cluster at '127.0.0.1:1': [Errno 111] Connection refused" in done.stderr


def test_a_run_does_not_take_over_the_session_of_its_process(live, capsys, tmp_path):
    assert main.main([f"run.dir={tmp_path / 'run'}"]) == 1
    assert (
        f"this process uses the Ray session at {ray.get_runtime_context().gcs_address} already"
        in capsys.readouterr().err
    )
    assert live.pool.stats()["target"] == 1 and not (tmp_path / "run").exists()


def test_without_the_token_the_cluster_does_not_answer(live, ray_cluster):
    done = scale("2", "--run", "scale-test", "--address", ray_cluster, RAY_AUTH_TOKEN="f" * 64)
    assert done.returncode == 1 and "error: no Ray cluster at" in done.stderr
    assert live.pool.stats()["target"] == 1
