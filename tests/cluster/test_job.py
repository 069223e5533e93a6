"""cluster/README.md walked through with real `ray start` and `ray job`: token, upload, logs, stop, nodes that go."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from learner.committed import list_committed
from learner.summary import read_summary
from tests.cluster.nodes import READY_SEC, Cluster, checkout
from tests.learner.command import ROOT, tiny_settings
from tests.polling import until

WORKER, RANK = "ray::RolloutWorkerActor", "ray::RayTrainWorker"
CONTROL = ("ray::PoolActor", "ray::ReplayActor", "ray::MailboxActor", "ray::_TelemetryActor")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("source"))


@pytest.mark.timeout(5 * READY_SEC)
def test_a_job_needs_the_token_and_runs_from_what_was_uploaded(cluster, source):
    command = ("submit", "--working-dir", str(source), "--", "python", "-m", "learner.main", "--dry-run")
    stranger = cluster.environment(HOME=str(source), RAY_AUTH_MODE="disabled")
    refused = cluster.job(*command, environment=stranger)
    assert refused.returncode != 0 and "Missing authentication token" in refused.stderr, refused.stderr
    assert cluster.uploads() == [], "nothing was taken from it"

    done = cluster.job(*command)
    assert "learner rank" in done.stdout and "rollout worker" in done.stdout, done.stdout + done.stderr
    [upload] = cluster.uploads()
    names = {path.name for path in upload.iterdir()}
    assert {"configs", "reward", "rollout", "learner"} <= names
    assert not names & {".venv", "runs", "tests", ".git"}
    assert sum(path.stat().st_size for path in upload.rglob("*") if path.is_file()) < 16 << 20


@pytest.mark.timeout(3 * READY_SEC)
def test_actors_that_coordinate_stay_with_the_driver_and_off_nodes_that_may_go(cluster):
    guests = [cluster.add(name, "{}") for name in ("guest-1", "guest-2")]
    command = [sys.executable, "-m", "tests.cluster.control_actors", cluster.address]
    environment = cluster.environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=READY_SEC)
    said = done.stdout.splitlines()  # Ray's own lines among them
    assert "started elsewhere: 0" in said and "started again elsewhere: 0" in said, done.stdout + done.stderr
    for guest in guests:
        guest.kill()


class Job:
    """A submitted run; its output is what `ray job logs` gives."""

    def __init__(self, cluster: Cluster, source, run_dir, name: str, settings: list[str]) -> None:
        self.cluster, self.run_dir, self.name = cluster, run_dir, name
        done = cluster.job(
            "submit", "--no-wait", "--submission-id", name, "--working-dir", str(source), "--",
            "python", "-m", "learner.main", "--config", "configs/quickstart.yaml", *settings, f"run.dir={run_dir}",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def logs(self) -> str:
        return self.cluster.job("logs", self.name).stdout

    def until(self, condition):
        def ended():
            return None if self.cluster.head.pids("learner.main") else "the driver has ended"

        until(lambda: self.cluster.head.pids("learner.main"), READY_SEC, self.logs)
        return until(condition, READY_SEC, self.logs, ended)

    def batches(self) -> int:
        """Of the newest committed checkpoint."""
        committed = list_committed(self.run_dir)
        return int(committed[-1].name.removeprefix("batch-")) if committed else 0


def scale(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rollout.scale", *arguments, "--address", cluster.address]
    return subprocess.run(command, env=cluster.environment(), capture_output=True, text=True, timeout=READY_SEC)


@pytest.mark.slow
@pytest.mark.timeout(12 * READY_SEC)
def test_roles_on_nodes_of_their_own_that_come_and_go_then_stop_and_resume(cluster, source, tmp_path):
    learner = cluster.add("learner", '{"learner_node": 1}')
    first = cluster.add("rollout-1", '{"rollout_node": 1}')
    settings = [
        *tiny_settings(tmp_path), "run.name=nodes", "learner.ranks=1", "evaluation.every_batches=1000",
        "learner.resources={cpus: 0.25, custom: {learner_node: 0.01}}", "rollout.workers.max=3",
        "rollout.workers.resources={cpus: 0.5, custom: {rollout_node: 0.01}}",
        "evaluation.resources={cpus: 0, custom: {learner_node: 0.01}}", "learner.max_batches=10000",
    ]  # fmt: skip
    run_dir = tmp_path / "run"
    job = Job(cluster, source, run_dir, "nodes-1", settings)
    job.until(lambda: job.batches() >= 1)
    assert first.pids(WORKER) and not learner.pids(WORKER) and not cluster.head.pids(WORKER)
    for control in CONTROL:
        assert cluster.head.pids(control) and not first.pids(control) and not learner.pids(control), control
    assert learner.pids(RANK) and not first.pids(RANK) and not cluster.head.pids(RANK)

    grown = scale(cluster, "2", "--run", "nodes")
    assert grown.stdout.startswith("rollout workers of nodes: 1 -> 2 ("), grown.stdout + grown.stderr
    second = cluster.add("rollout-2", '{"rollout_node": 1}')
    job.until(lambda: len(first.pids(WORKER)) + len(second.pids(WORKER)) == 2)
    first.kill()
    job.until(lambda: len(second.pids(WORKER)) == 2)
    hurt = job.batches()
    job.until(lambda: job.batches() > hurt + 1)

    assert cluster.job("stop", "nodes-1").returncode == 0
    until(lambda: not cluster.head.pids("learner.main"), READY_SEC, job.logs)
    said = job.logs()
    assert len(set(re.findall(r"^step (\d+)/20000", said, flags=re.MULTILINE))) > 2, said  # a line every ten seconds
    for text in ("a rollout worker died", "SIGTERM: finishing the batch", "Stopped by SIGTERM; go on with:"):
        assert text in said, said
    until(lambda: not second.pids(WORKER) and not learner.pids(RANK), READY_SEC, lambda: f"orphans after:\n{said}")
    stopped = job.batches()
    assert read_steps(run_dir)[-1] == 2 * stopped, "what was trained is what was saved"

    finished = cluster.job(
        "submit", "--working-dir", str(source), "--", "python", "-m", "learner.main", "--resume", "auto",
        *settings, f"run.dir={run_dir}", f"learner.max_batches={stopped + 2}",
    )  # fmt: skip
    assert finished.returncode == 0 and "Finished" in finished.stdout, finished.stdout + finished.stderr
    assert f"Resuming after batch {stopped}" in finished.stdout
    summary = read_summary(run_dir / "summary.json")  # refuses books that do not close
    assert summary.groups.trained == 4 * (stopped + 2) and summary.groups.produced > 0
    assert read_steps(run_dir) == list(range(1, 2 * (stopped + 2) + 1)), "no step twice, none missing"


def read_steps(run_dir) -> list[int]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss/total" in line]
