"""kill -9 of all ranks in every phase of saving: the run goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import signal

import pytest

from learner.committed import checkpoint_path, list_committed
from learner.metrics_log import read_metrics
from tests.learner.compare import assert_checkpoints_equal
from tests.learner.crash import MOMENTS, REFUSED, train_ranks
from tests.learner.disks import mounts_permitted
from tests.tiny import tiny_pipeline

pytestmark = pytest.mark.timeout(600)
MOUNTS = pytest.mark.skipif(not mounts_permitted(), reason="mounting is not permitted here")
FAST = ("between the shards", "before the manifest's rename", "while the old one is removed")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("crash") / "pipeline")


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    """Four batches without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    assert train_ranks(pipeline, folder / "run", folder / "scratch") == [0, 0]
    return folder / "run"


def reported(run_dir):
    kept = ("step", "loss/", "ratio/", "pairs/", "reward/", "weights/", "queue/trained", "queue/produced")
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key.startswith(kept)} for line in lines]


@pytest.mark.parametrize(
    "moment", [moment if moment in FAST else pytest.param(moment, marks=pytest.mark.slow) for moment in MOMENTS]
)
def test_a_kill_while_saving_changes_nothing(whole, pipeline, tmp_path, moment):
    run_dir = tmp_path / "run"
    assert -signal.SIGKILL in train_ranks(pipeline, run_dir, tmp_path / "first", kill_at=moment)
    assert list_committed(run_dir)[-1] == checkpoint_path(run_dir, MOMENTS[moment][0])
    assert train_ranks(pipeline, run_dir, tmp_path / "second", resume=True) == [0, 0]

    [last] = list_committed(run_dir)
    assert last == checkpoint_path(run_dir, 4)
    assert sorted(path.name for path in last.parent.iterdir()) == [last.name], "nothing half-written stays"
    assert_checkpoints_equal(last, checkpoint_path(whole, 4))
    assert [line["step"] for line in reported(run_dir)] == list(range(1, 9))
    assert reported(run_dir) == reported(whole)


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        ("no file beyond 4 KB", "bytes wanted"),
        pytest.param("full disk", "No space left on device", marks=[pytest.mark.slow, MOUNTS]),
        pytest.param("read-only disk", "Read-only file system", marks=[pytest.mark.slow, MOUNTS]),
    ],
)
def test_a_disk_that_cannot_be_written_ends_all_ranks_with_the_reason(whole, pipeline, tmp_path, disk, words):
    """Of rank 0 alone. What was committed stays, and the run goes on from there once the disk is mended."""
    run_dir = tmp_path / "run"
    assert train_ranks(pipeline, run_dir, tmp_path / "first", kill_at=disk) == [REFUSED, REFUSED]
    for rank in (0, 1):
        message = (tmp_path / "first" / f"refused-{rank}").read_text()
        assert "this checkpoint cannot be written" in message and words in message, message
    assert list_committed(run_dir) == [checkpoint_path(run_dir, 0)]
    assert train_ranks(pipeline, run_dir, tmp_path / "second", resume=True) == [0, 0]
    assert_checkpoints_equal(checkpoint_path(run_dir, 4), checkpoint_path(whole, 4))
