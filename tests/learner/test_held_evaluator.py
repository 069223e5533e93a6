"""Whole asynchronous runs whose evaluator is held, or breaks: training goes on to its end, or ends with the reason."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from learner.committed import list_committed
from learner.metrics_log import read_metrics
from learner.summary import read_summary
from tests.learner.command import FINISH_SEC, Command, tiny_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * FINISH_SEC)]
BATCHES = 6


def settings(folder: Path, **options: str | int) -> list[str]:
    given = ", ".join(f"{name}: {value}" for name, value in options.items())
    return [
        *tiny_settings(folder), f"learner.max_batches={BATCHES}", "schedule={type: async}",
        "evaluation.every_batches=1",
        f"evaluation.scorers=[{{type: import, target: 'tests.fakes:HeldScorer', options: {{{given}}}}}]",
    ]  # fmt: skip


def lines(run_dir: Path) -> list[dict[str, float]]:
    return read_metrics(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").exists() else []


def trained_and_not_evaluated(folder: Path) -> Command:
    """A run that has trained its last batch, while its evaluator waits for `folder`/gate in the first evaluation."""
    run = Command(settings(folder, gate=str(folder / "gate")), folder / "run")
    last = 2 * BATCHES
    run.until(lambda: any(line["step"] == last and "throughput/batches" in line for line in lines(run.run_dir)))
    assert not [line for line in lines(run.run_dir) if "eval/reward" in line]
    return run


def test_the_learner_is_done_before_the_first_evaluation(tmp_path: Path) -> None:
    run = trained_and_not_evaluated(tmp_path)
    (tmp_path / "gate").touch()
    status, output = run.finish()
    assert status == 0, output
    evaluated = [line["step"] for line in lines(run.run_dir) if "eval/held-1" in line]
    assert evaluated == [0, 2, 8, 10, 12], "of the first six batches' versions two waited, two were skipped"
    assert max(line["eval/skipped"] for line in lines(run.run_dir) if "eval/skipped" in line) == 2


def test_a_signal_after_the_last_batch_does_not_wait_for_evaluations(tmp_path: Path) -> None:
    run = trained_and_not_evaluated(tmp_path)
    run.process.send_signal(signal.SIGTERM)
    status, output = run.finish()
    assert status == 143 and "Stopped by SIGTERM; go on with:" in output, output
    run.assert_no_orphans()
    assert not (run.run_dir / "summary.json").exists(), "nothing was concluded"

    (tmp_path / "gate").touch()
    status, output = Command(settings(tmp_path, gate=str(tmp_path / "gate")), run.run_dir, "--resume", "auto").finish()
    assert status == 0 and f"Resuming after batch {BATCHES}" in output, output
    summary = read_summary(run.run_dir / "summary.json")
    assert (summary.steps, summary.groups.trained) == (2 * BATCHES, 4 * BATCHES)
    assert [line["step"] for line in lines(run.run_dir) if "loss/total" in line] == list(range(1, 2 * BATCHES + 1))


def test_an_evaluation_that_fails_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "gate").touch()
    run = Command(settings(tmp_path, gate=str(tmp_path / "gate"), broken_from=2), run_dir)
    status, output = run.finish()
    assert status == 1, output
    assert "failed: FloatingPointError: evaluation: held-1 is nan for prompt" in output, output
    assert list_committed(run_dir), "what was trained is kept"
    assert not (run_dir / "summary.json").exists()
