"""An offline run by the command, under Ray: whole, interrupted and gone on with, and with a rank that is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from learner.committed import checkpoint_path, list_committed
from learner.datasets.books import BAD_ROWS
from learner.metrics_log import read_metrics
from learner.summary import read_summary
from tests.learner.command import FINISH_SEC, Command, metrics, tiny_settings
from tests.learner.compare import assert_checkpoints_equal
from tests.learner.offline.sets import write_set

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * FINISH_SEC)]
BATCHES, PER_BATCH, ROWS = 12, 4, 10
BAD = 7
"""Number of the row whose picture is damaged. Ten rows: every one is met in the first three batches of four."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline-command")
    path = write_set(folder / "set", "pairs", "folder", ROWS)
    (path / f"{BAD:06d}.lose.png").write_bytes(b"no picture")
    online = ("rollout.sampler.", "prompts.source", "rollout.workers.", "schedule=")
    tiny = [text for text in tiny_settings(folder) if not text.startswith(online)]
    return [
        *tiny, "learner.objective.type=dpo", "data.type=pairs", f"data.path={path}", "data.on_bad_row=skip",
        f"learner.groups_per_batch={PER_BATCH}", f"learner.max_batches={BATCHES}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """Run directory and output of a run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    status, output = Command([*settings, "run.name=offline-whole"], run_dir).finish()
    assert status == 0, output
    return run_dir, output


def test_a_run_leaves_everything_where_it_says(whole, settings):
    run_dir, output = whole
    assert "batches of 4 pairs from" in output and "2 learner rank(s)" in output and "rollout worker" not in output
    summary = read_summary(run_dir / "summary.json")
    assert summary.steps == 2 * BATCHES and summary.groups.trained == summary.groups.produced == PER_BATCH * BATCHES
    assert summary.data is not None and summary.data.epoch_rows == ROWS
    assert [Path(row.where).name for row in summary.data.bad_rows] == [f"{BAD:06d}.*"], "once, over epochs and ranks"
    pretrained = next(text for text in settings if text.startswith("model.pretrained")).partition("=")[2]
    StableDiffusionPipeline.from_pretrained(pretrained, safety_checker=None).load_lora_weights(run_dir / "lora")


def assert_equals_whole(run_dir: Path, whole: Path) -> None:
    """Bit for bit; every batch trained once, none left out, and so is every row, which a batch's number decides."""
    summary, wanted = read_summary(run_dir / "summary.json"), read_summary(whole / "summary.json")
    assert summary.adapter_sha256 == wanted.adapter_sha256
    assert (summary.groups, summary.pairs_trained) == (wanted.groups, wanted.pairs_trained)
    assert summary.data is not None and wanted.data is not None
    assert (summary.data.bad_rows, summary.data.epoch_rows) == (wanted.data.bad_rows, wanted.data.epoch_rows)
    assert len((run_dir / BAD_ROWS).read_text().splitlines()) == 1
    trained = [line for line in metrics(run_dir) if "pairs/trained" in line]
    assert trained == [line for line in metrics(whole) if "pairs/trained" in line]
    assert [line["step"] for line in trained] == list(range(1, 2 * BATCHES + 1))
    assert sum(line["pairs/trained"] for line in trained) == PER_BATCH * BATCHES
    steps = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")]
    assert steps == sorted(set(steps)), "no step twice"
    assert_checkpoints_equal(checkpoint_path(run_dir, BATCHES), checkpoint_path(whole, BATCHES))


def test_interrupted_and_resumed_by_the_command_equals_whole(settings, whole, tmp_path):
    run = Command([*settings, "run.name=offline-parts"], tmp_path / "run")
    run.until(lambda: list_committed(run.run_dir)[1:])
    run.process.send_signal(signal.SIGTERM)
    status, output = run.finish()
    assert status == 143 and "--resume auto" in output, output
    run.assert_no_orphans()
    status, output = Command([*settings, "run.name=offline-parts"], run.run_dir, "--resume", "auto").finish()
    assert status == 0 and "Resuming after batch" in output, output
    assert_equals_whole(run.run_dir, whole[0])


def test_a_rank_that_is_killed_comes_back_from_the_committed_checkpoint(settings, whole, tmp_path):
    """kill -9 of one rank of two; the other is started anew with it."""
    run = Command([*settings, "run.name=offline-lost"], tmp_path / "run")
    run.until(lambda: list_committed(run.run_dir)[1:])
    ranks = run.until(lambda: run.pids("ray::RayTrainWorker"))
    os.kill(ranks[-1], signal.SIGKILL)
    status, output = run.finish()
    assert status == 0, output
    run.assert_no_orphans()
    assert_equals_whole(run.run_dir, whole[0])


def test_it_ends_as_asked_though_the_books_that_were_told_are_killed(settings, tmp_path):
    """kill -9 of the books between SIGTERM and the next batch; the ranks stand still meanwhile."""
    many = [*settings, "run.name=offline-books", "learner.max_batches=2000", "checkpoint.every_batches=1000"]
    run = Command(many, tmp_path / "run")
    run.until(lambda: (run.run_dir / "metrics.jsonl").exists() and len(metrics(run.run_dir)) > 2)
    ranks, (books,) = run.pids("ray::RayTrainWorker"), run.pids("ray::DataBooks")
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    run.process.send_signal(signal.SIGTERM)
    run.until(lambda: "SIGTERM: finishing the batch" in run.output())
    os.kill(books, signal.SIGKILL)
    run.until(lambda: set(run.pids("ray::DataBooks")) - {books})
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)
    status, output = run.finish()
    assert status == 143 and "--resume auto" in output, output
    first, saved = list_committed(run.run_dir)
    assert first < saved < checkpoint_path(run.run_dir, 2000), "it did not train to the end"
    run.assert_no_orphans()
