"""Evaluations while training goes on: the learner asks for one and never waits for it.

    rank 0 ── version ──► waiting, oldest first ──► one at a time ──► evaluator ──► telemetry, best/
                             │ more than evaluation.max_waiting
                             └──► the oldest is skipped, and counted in eval/skipped

An evaluator that is slower than `evaluation.every_batches` asks for so costs points of a curve, not training time and
not memory without end. One that fails closes the queue: every rank finishes its batch, a checkpoint is saved, and the
run ends with the reason. After the last batch the learner waits for those still to be done, unless the run is to stop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from configs.schema import AtelierConfig
from rollout.eval_result import REWARD, EvalResult
from rollout.versions import AdapterVersion

SKIPPED_TAG = "eval/skipped"
SECONDS_TAG = "throughput/evaluation_sec"
LOOK_SEC = 1.0
Work = Callable[[AdapterVersion, bytes, int], None]
"""Evaluates one version and records it; the number is how many versions were skipped so far."""


class EvaluationDesk:
    """`learner.interfaces.EvaluationHook`: takes versions at once; a thread has them evaluated one after another."""

    def __init__(self, work: Work, max_waiting: int, on_failure: Callable[[str], None]) -> None:
        """`on_failure` is called once, with a sentence, when an evaluation fails; nothing is evaluated after that."""
        self._work, self._max_waiting, self._on_failure = work, max_waiting, on_failure
        self._waiting: deque[tuple[AdapterVersion, bytes]] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None
        self.skipped = 0
        self.failure: str | None = None

    def __call__(self, version: AdapterVersion, state: bytes) -> None:
        with self._changed:
            if self.failure is not None:
                return
            self._waiting.append((version, state))
            if len(self._waiting) > self._max_waiting + (not self._busy):  # the thread takes the first at once
                self._waiting.popleft()
                self.skipped += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="evaluations", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Until nothing waits and nothing is being evaluated, one has failed, or `given_up`, asked every second."""
        with self._changed:
            while not self._changed.wait_for(self._at_rest, LOOK_SEC):
                if given_up():
                    return

    def _at_rest(self) -> bool:
        return self.failure is not None or not (self._busy or self._waiting)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                version, state = self._waiting.popleft()
                skipped, self._busy = self.skipped, True
            try:
                self._work(version, state, skipped)
            except Exception as error:  # whatever it was, the run is told
                self._fail(f"evaluation at step {version.step} failed: {_reason(error)}")
                return
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _fail(self, sentence: str) -> None:
        with self._changed:
            self.failure = sentence
            self._waiting.clear()
            self._changed.notify_all()
        self._on_failure(sentence)


def create_desk(evaluator: Any, telemetry: Any, queue: Any, config: AtelierConfig) -> EvaluationDesk:
    """The desk over the run's actors, in rank 0's process. Of the pictures only their grid comes here, as a PNG."""

    def work(version: AdapterVersion, state: bytes, skipped: int) -> None:
        result, picture = ray.get(evaluator.report.remote(state, version.sha256))
        record_evaluation(result, picture, telemetry, version.step)
        if skipped:
            ray.get(telemetry.scalars.remote(version.step, {SKIPPED_TAG: skipped}))
        if config.checkpoint.best is not None:
            from learner.best import keep_if_best  # reads the adapter with torch, which the driver does without

            keep_if_best(config.run.path, config.checkpoint.best, version, state, result.metrics)

    def close(sentence: str) -> None:
        ray.get(queue.close.remote(sentence))

    return EvaluationDesk(work, config.evaluation.max_waiting, close)


def record_evaluation(result: EvalResult, picture: bytes, telemetry: Any, step: int) -> None:
    """Scores, how long they took, and the grid of the first pictures (PNG) into telemetry."""
    ray.get(telemetry.scalars.remote(step, {**result.scalars(), SECONDS_TAG: result.seconds}))
    if step == 0:
        ray.get(telemetry.text.remote(step, "eval/scorers", scorers_page(result)))
    ray.get(telemetry.images.remote(step, {"eval/grid": picture}))


def scorers_page(result: EvalResult) -> str:
    """Markdown: which scorer is behind which curves."""
    in_use = f"`eval/{REWARD}` `eval/{result.scorer}` `reward/final_mean` `reward/step_mean`"
    rows = [("in use: the model is trained for it", in_use)]
    rows += [("held out, or a measure", f"`eval/{name}`") for name in result.metrics if name != REWARD]
    return "\n".join(["| what | curves |", "|---|---|", *(f"| {what} | {curves} |" for what, curves in rows)])


def _reason(error: BaseException) -> str:
    """What was raised, without Ray's wrapping."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and cause is not error:
        return _reason(cause)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
