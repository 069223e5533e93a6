"""kill -9 of all ranks in every phase of saving: the run goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import signal

import pytest

from learner.committed import checkpoint_path, list_committed
from learner.metrics_log import read_metrics
from tests.learner.compare import assert_checkpoints_equal
from tests.learner.crash import FULL_DISK, MOMENTS, REFUSED, train_ranks
from tests.tiny import tiny_pipeline

pytestmark = pytest.mark.timeout(600)
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


def test_a_full_disk_ends_all_ranks_with_the_reason_and_keeps_what_was_committed(whole, pipeline, tmp_path):
    """Rank 0 can write no more: a limit of its process on file sizes. The kernel's refusal is a full disk's."""
    run_dir = tmp_path / "run"
    assert train_ranks(pipeline, run_dir, tmp_path / "first", kill_at=FULL_DISK) == [REFUSED, REFUSED]
    for rank in (0, 1):
        message = (tmp_path / "first" / f"refused-{rank}").read_text()
        assert "this checkpoint cannot be written" in message and "bytes wanted" in message, message
    assert list_committed(run_dir) == [checkpoint_path(run_dir, 0)]
    assert train_ranks(pipeline, run_dir, tmp_path / "second", resume=True) == [0, 0]
    assert_checkpoints_equal(checkpoint_path(run_dir, 4), checkpoint_path(whole, 4))
