"""Evaluations beside training: nobody waits for one, a slow evaluator skips the oldest, a failure ends the run."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from learner.evaluations import EvaluationDesk
from learner.loop import train
from rollout.versions import AdapterVersion
from tests.learner.inprocess import Mailbox, Rollout, Telemetry, single_process_group, small_config
from tests.tiny import tiny_pipeline

WAIT_SEC = 120


class Gate:
    """Evaluates nothing until it is opened; keeps what it was given."""

    def __init__(self) -> None:
        self.open, self.begun = threading.Event(), threading.Event()
        self.done: list[tuple[int, int]] = []

    def __call__(self, version: AdapterVersion, state: bytes, skipped: int) -> None:
        self.begun.set()
        assert self.open.wait(WAIT_SEC)
        self.done.append((version.step, skipped))


def version(step: int) -> AdapterVersion:
    return AdapterVersion(step=step, batch=step, attempt=0, sha256="0" * 64)


def test_a_slow_evaluator_makes_nobody_wait_and_skips_the_oldest() -> None:
    gate, failures = Gate(), list[str]()
    desk = EvaluationDesk(gate, 2, failures.append)
    desk(version(1), b"")
    assert gate.begun.wait(WAIT_SEC)
    for step in range(2, 11):
        desk(version(step), b"")  # returns, though the evaluator is held
    assert gate.done == [] and desk.skipped == 7
    gate.open.set()
    desk.wait()
    assert gate.done == [(1, 0), (9, 7), (10, 7)] and failures == [] and desk.failure is None
    desk(version(11), b"")
    desk.wait()
    assert gate.done[-1] == (11, 7), "it goes on afterwards"


def test_training_reaches_its_end_while_the_evaluator_is_held(tmp_path: Path) -> None:
    """The loop itself, on the real queue, mailbox, sampler and engine: an order of events, no times."""
    single_process_group(tmp_path)
    config = small_config(tiny_pipeline(tmp_path / "pipeline"), tmp_path / "run")
    evaluation = config.evaluation.model_copy(update={"every_batches": 1})
    config = config.model_copy(update={"evaluation": evaluation})
    gate, mailbox, telemetry = Gate(), Mailbox(tmp_path / "adapters"), Telemetry()
    desk = EvaluationDesk(gate, 1, lambda sentence: None)
    rollout = Rollout(config, mailbox)
    result = train(0, 1, config, rollout, mailbox, telemetry, device=torch.device("cpu"), evaluate=desk)
    assert result.finished and result.counters.batch == 4 and gate.done == []
    gate.open.set()
    desk.wait()
    assert [step for step, _ in gate.done][-1] == 6, "the last evaluation asked for; the driver makes the final one"
    assert len(gate.done) + desk.skipped == 3


def test_as_many_wait_however_late_the_first_begins() -> None:
    gate = Gate()
    desk = EvaluationDesk(gate, 1, lambda sentence: None)
    for step in range(1, 5):
        desk(version(step), b"")
    gate.open.set()
    desk.wait()
    assert len(gate.done) + desk.skipped == 4 and gate.done[-1][0] == 4 and len(gate.done) <= 3


def test_a_run_that_is_to_stop_does_not_wait() -> None:
    gate = Gate()
    desk = EvaluationDesk(gate, 1, lambda sentence: None)
    desk(version(1), b"")
    desk.wait(given_up=gate.begun.is_set)
    assert gate.done == []
    gate.open.set()
    desk.wait()
    assert gate.done == [(1, 0)]


def test_a_failed_evaluation_is_told_once_and_nothing_follows() -> None:
    failures, evaluated = list[str](), list[int]()

    def work(version: AdapterVersion, state: bytes, skipped: int) -> None:
        evaluated.append(version.step)
        if version.step == 2:
            raise FloatingPointError("red-1 is nan for prompt 'two dots'")

    told = threading.Event()
    desk = EvaluationDesk(work, 2, lambda sentence: (failures.append(sentence), told.set())[0])
    for step in (1, 2):
        desk(version(step), b"")
        desk.wait()
    assert told.wait(WAIT_SEC)
    desk(version(3), b"")
    desk.wait()
    assert evaluated == [1, 2]
    assert failures == [desk.failure]
    assert desk.failure == "evaluation at step 2 failed: FloatingPointError: red-1 is nan for prompt 'two dots'"
