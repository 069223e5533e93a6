"""Whole asynchronous runs whose evaluator is held, or breaks: training goes on to its end, or ends with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.committed import list_committed
from learner.metrics_log import read_metrics
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


def test_the_learner_is_done_before_the_first_evaluation(tmp_path: Path) -> None:
    gate, run_dir = tmp_path / "gate", tmp_path / "run"
    run = Command(settings(tmp_path, gate=str(gate)), run_dir)

    def lines() -> list[dict[str, float]]:
        return read_metrics(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").exists() else []

    run.until(lambda: any(line["step"] == 2 * BATCHES and "throughput/batches" in line for line in lines()))
    assert not [line for line in lines() if "eval/reward" in line], "no evaluation has ended, all training has"
    gate.touch()
    status, output = run.finish()
    assert status == 0, output
    evaluated = [line["step"] for line in lines() if "eval/held-1" in line]
    assert evaluated == [0, 2, 8, 10, 12], "of the first six batches' versions two waited, two were skipped"
    assert max(line["eval/skipped"] for line in lines() if "eval/skipped" in line) == 2


def test_an_evaluation_that_fails_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "gate").touch()
    run = Command(settings(tmp_path, gate=str(tmp_path / "gate"), broken_from=2), run_dir)
    status, output = run.finish()
    assert status == 1, output
    assert "failed: FloatingPointError: evaluation: held-1 is nan for prompt" in output, output
    assert list_committed(run_dir), "what was trained is kept"
    assert not (run_dir / "summary.json").exists()
