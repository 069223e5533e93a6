"""The whole command, its processes killed, stopped or interrupted. Under sync any such run equals an unhurt one."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from learner.committed import checkpoint_path, list_committed
from learner.metrics_log import read_metrics
from learner.summary import read_summary
from tests.chaos.observer import Observer
from tests.learner.command import FINISH_SEC, Command, metrics, tiny_settings
from tests.learner.compare import assert_checkpoints_equal
from tests.learner.disks import mounts_permitted
from tests.learner.test_telemetry import steps_of

pytestmark = pytest.mark.timeout(3 * FINISH_SEC)
BATCHES = 6
TITLES = {
    "worker": "ray::RolloutWorkerActor",
    "queue": "ray::ReplayActor",
    "mailbox": "ray::MailboxActor",
    "pool": "ray::PoolActor",
    "telemetry": "ray::_TelemetryActor",
    "evaluator": "ray::Evaluator",
    "rank": "ray::RayTrainWorker",
}
"""What Ray calls the processes of each role."""
STALLED = "rollout.workers.stall_timeout_sec = 60"
"""Longer than a worker takes to load on a busy machine."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    return [*tiny_settings(folder), f"learner.max_batches={BATCHES}"]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The run directory of a run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    status, output = Command([*settings, "run.name=whole"], run_dir).finish()
    assert status == 0, output
    return run_dir


def assert_equals_whole(run_dir, whole):
    summary, wanted = read_summary(run_dir / "summary.json"), read_summary(whole / "summary.json")
    assert summary.adapter_sha256 == wanted.adapter_sha256
    assert summary.groups.trained == wanted.groups.trained == 4 * BATCHES  # the books close: summary.py refuses others
    assert summary.pairs_trained == wanted.pairs_trained
    trained = [line for line in metrics(run_dir) if "loss/total" in line]
    assert trained == [line for line in metrics(whole) if "loss/total" in line]
    assert [line["step"] for line in trained] == list(range(1, 2 * BATCHES + 1))
    steps = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")]
    assert steps == sorted(set(steps)), "no step twice"
    assert steps_of(run_dir, "loss/total") == list(range(1, 2 * BATCHES + 1)), "nor in TensorBoard"


def assert_failed(run, *words):
    """It ends with status 1 and these words, leaves no process, and what was committed stays."""
    status, output = run.finish()
    assert status == 1 and all(text in output for text in words), output
    run.assert_no_orphans()
    assert list_committed(run.run_dir)[1:]


def assert_goes_on_as_whole(settings, run, whole):
    """Resumed with the same settings it equals the run that nothing happened to."""
    status, output = Command(settings, run.run_dir, "--resume", "auto").finish()
    assert status == 0 and "Resuming after batch" in output, output
    assert_equals_whole(run.run_dir, whole)


def kill(run, role):
    """kill -9 of all processes of a role, once there are some."""
    pids = run.until(lambda: run.pids(TITLES[role]))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def test_ctrl_c_while_it_starts_leaves_nothing(settings, tmp_path):
    run = Command([*settings, "run.name=early"], tmp_path / "run")
    run.until((tmp_path / "run" / "run.lock").exists)
    run.signal_group(signal.SIGINT)
    status, output = run.finish()
    assert status == 130 and "Stopped by SIGINT before training began" in output, output
    run.assert_no_orphans()
    assert not (tmp_path / "run").exists(), "nothing half-written"


@pytest.mark.slow
def test_ctrl_c_in_training_finishes_the_batch_and_saves(settings, whole, tmp_path):
    settings = [*settings, "run.name=ctrlc"]
    run = Command(settings, tmp_path / "run")
    run.until(lambda: list_committed(run.run_dir)[1:])
    run.signal_group(signal.SIGINT)
    status, output = run.finish()
    assert status == 130 and "Stopped by SIGINT" in output and "--resume auto" in output, output
    run.assert_no_orphans()
    assert_goes_on_as_whole(settings, run, whole)


def has_saved(batch):
    return lambda run: checkpoint_path(run.run_dir, batch) in list_committed(run.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [has_saved(2), lambda run: "evaluating the trained model" in run.output()],
    ids=["training", "concluding"],
)
def test_kill_9_of_everything_and_resume_equals_whole(settings, whole, tmp_path, moment):
    settings = [*settings, "run.name=killed"]
    run = Command(settings, tmp_path / "run")
    run.until(lambda: moment(run))
    run.kill_everything()
    assert_goes_on_as_whole(settings, run, whole)
    assert_checkpoints_equal(checkpoint_path(run.run_dir, BATCHES), checkpoint_path(whole, BATCHES))


@pytest.mark.slow
@pytest.mark.parametrize("role", list(TITLES))
def test_a_run_that_loses_a_process_equals_whole(settings, whole, tmp_path, role):
    """Every process of the role at once: for workers that is all of them."""
    run = Command([*settings, f"run.name=lost-{role}", "rollout.workers.initial=2"], tmp_path / "run")
    run.until(lambda: list_committed(run.run_dir)[1:])
    kill(run, role)
    status, output = run.finish()
    assert status == 0, output
    run.assert_no_orphans()
    assert_equals_whole(run.run_dir, whole)


@pytest.mark.slow
def test_an_empty_queue_holds_the_ranks_for_longer_than_their_collectives_may_take(settings, whole, tmp_path):
    patience_sec = 30
    run = Command([*settings, "run.name=empty", f"learner.engine.timeout_sec={patience_sec}"], tmp_path / "run")
    run.until(lambda: list_committed(run.run_dir)[1:])
    observer = Observer(run.ray_address(), "empty")
    ranks, [worker] = run.pids(TITLES["rank"]), run.pids(TITLES["worker"])
    os.kill(worker, signal.SIGSTOP)
    run.until(lambda: observer.look().queue.get("waiting_ranks") == 2)
    held = time.monotonic()
    run.until(lambda: time.monotonic() - held > 1.5 * patience_sec)
    assert observer.look().queue["waiting_ranks"] == 2
    observer.close()
    os.kill(worker, signal.SIGCONT)
    run.until(lambda: checkpoint_path(run.run_dir, BATCHES - 1) in list_committed(run.run_dir))
    assert run.pids(TITLES["rank"]) == ranks, "none of them had to be started again"
    status, output = run.finish()
    assert status == 0, output
    assert_equals_whole(run.run_dir, whole)


@pytest.mark.slow
def test_workers_that_die_as_soon_as_they_start_end_the_run(settings, tmp_path):
    """The worker, and every successor before it has loaded its models: none is alive for stall_timeout_sec."""
    limit = STALLED.replace(" ", "")
    run = Command([*settings, limit, "run.name=dying", "learner.max_batches=500"], tmp_path / "run")
    run.until(lambda: list_committed(run.run_dir)[1:])
    killed: set[int] = set()
    while run.process.poll() is None:
        for pid in set(run.pids(TITLES["worker"])) - killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    assert_failed(run, "no rollout worker has been alive for", STALLED, "rollout-0.")
    assert len(killed) > 1


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not mounts_permitted(), reason="mounting is not permitted here")
def test_a_disk_that_fills_up_ends_the_run_and_room_lets_it_go_on(settings, whole, disk):
    settings = [*settings, "run.name=full"]
    run = Command(settings, disk / "run")
    run.until(lambda: list_committed(run.run_dir)[1:])
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert_failed(run, "No space left on device", "--resume auto")
    filler.unlink()
    assert_goes_on_as_whole(settings, run, whole)


@pytest.mark.slow
def test_workers_that_all_hang_end_the_run_with_what_each_last_did(settings, tmp_path):
    limit = STALLED.replace(" ", "")
    run = Command([*settings, limit, "run.name=stall", "learner.max_batches=500"], tmp_path / "run")
    run.until(lambda: list_committed(run.run_dir)[1:])
    for pid in run.pids(TITLES["worker"]):
        os.kill(pid, signal.SIGSTOP)
    assert_failed(run, STALLED, "rollout-0.1")
