"""The driver of a run: starts its parts, watches them, and concludes. `learner.main` has the whole path.

While it watches, it shows progress; a signal, or a pool that gave up, closes the queue: the learner then finishes its
batch and saves a checkpoint.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from configs.data import OnlineData
from configs.schema import AtelierConfig
from learner import cluster
from learner.evaluations import record_evaluation
from learner.lost_ranks import LossReader
from learner.progress import ProgressLine, say
from learner.ranks import LearnerThread, build_trainer, root_cause
from learner.run_dir import RunDir
from learner.signals import Interrupted, Signals
from learner.telemetry import WORKER_MEMORY_TAG
from rollout.drift import exceeded
from rollout.eval_result import EvalResult
from rollout.pool_actor import PoolClient

POLL_SEC = 0.5
GAUGES_SEC = 5.0
_ANSWER_SEC = 10.0


class RunError(Exception):
    """The run cannot start, or ended badly. The message is for the console."""


class Driver:
    """Starts the parts, watches them, and concludes."""

    def __init__(self, config: AtelierConfig, run_dir: RunDir, signals: Signals) -> None:
        self._config = config
        self._run_dir = run_dir
        self._signals = signals
        self._began_sec = time.monotonic()
        try:
            self._actors = cluster.create_actors(config, resume=run_dir.checkpoint is not None)
        except ValueError as error:
            raise RunError(str(error)) from error
        self._base: EvalResult | None = None
        self._base_call = self._actors.evaluator.evaluate.remote(None)
        self._pool: PoolClient | None = cluster.start_pool(config)
        self._learner = LearnerThread(build_trainer(config, self._actors, run_dir.checkpoint))
        self._losses = LossReader(run_dir.path, config.checkpoint.max_failures)
        self._line = ProgressLine()
        self._shown_sec = 0.0
        self._gauged_step = -1
        self._deaths = 0
        self._announce()

    def run(self) -> int:
        """Train, evaluate, conclude; returns the exit status. Raises RunError."""
        self._signals.wait_for_batch()
        self._run_dir.start(self._config)
        self._learner.start()
        try:
            stopped = self._watch()
            self._actors.queue.close(stopped or "finished")
            if self._pool is not None:
                self._pool.stop()
            self._actors.mailbox.close(stopped or "finished")  # a call still waiting there would end in Ray's warning
            self._refuse_failure(stopped)
            if self._signals.received is not None:
                raise Interrupted(self._signals.received)
            words, status = self._conclude()
            say(words)
            return status
        except Interrupted as interrupted:
            ray.get(self._actors.telemetry.close.remote())
            say(f"Stopped by {interrupted}; go on with: {self._resume_command()}")
            return interrupted.status
        except RayError as error:
            raise RunError(f"{root_cause(error)}\n{self._where()}") from error

    def _watch(self) -> str | None:
        """Until the learner has ended. Returns why it was asked to stop, None if it was not."""
        stopped: str | None = None
        while self._learner.is_alive():
            self._learner.join(POLL_SEC)
            stats = _answer(self._pool.actor.stats.remote(), {}) if self._pool is not None else {}
            if stopped is None and (stopped := self._reason_to_stop(stats.get("status", "running"))):
                self._line.finish()
                say(f"{stopped}: finishing the batch and saving a checkpoint")
            if stopped is not None:
                self._actors.queue.close(stopped)  # each time: one that was killed and started again has forgotten it
            self._show(stats)
        self._line.finish(_answer(self._actors.telemetry.progress.remote(), None))
        return stopped

    def _reason_to_stop(self, pool_status: str) -> str | None:
        if self._signals.received is not None:
            return self._signals.name
        if pool_status not in ("running", "stopped"):
            return f"rollout {pool_status}"
        try:
            self._collect_base(wait=False)
        except RayError as error:
            return f"evaluation failed: {root_cause(error)}"
        if limits := self._config.evaluation.stop_on_drift:
            return exceeded(limits, _answer(self._actors.telemetry.latest.remote(list(limits)), {}))
        return None

    def _collect_base(self, *, wait: bool) -> None:
        """Record the base model's evaluation once it is there."""
        if self._base is None and (wait or ray.wait([self._base_call], timeout=0)[0]):
            self._base = self._until(self._base_call)
            if self._run_dir.checkpoint is None:  # else it is in the telemetry already
                picture = self._base.grid(self._config.evaluation.grid_size)
                record_evaluation(self._base, picture, self._actors.telemetry, 0)

    def _show(self, pool_stats: dict[str, Any]) -> None:
        if pool_stats.get("deaths", 0) > self._deaths:
            self._deaths = pool_stats["deaths"]
            self._line.finish()
            say(f"a rollout worker died ({self._deaths} so far); the pool starts another")
        for loss in self._losses.new():
            self._line.finish()
            say(loss)
        progress = _answer(self._actors.telemetry.progress.remote(), None)
        if progress is None:
            return
        now = time.monotonic()
        if pool_stats and progress["step"] > self._gauged_step and now - self._shown_sec > GAUGES_SEC:
            self._shown_sec, self._gauged_step = now, progress["step"]
            gauges = {
                "throughput/workers": pool_stats["alive"],
                "throughput/worker_deaths": pool_stats["deaths"],
                "throughput/rollout_groups_per_sec": pool_stats["groups_per_sec"],
                "throughput/scored_candidates_per_sec": pool_stats["scored_candidates_per_sec"],
                WORKER_MEMORY_TAG: pool_stats["peak_memory_bytes"],
            }
            self._actors.telemetry.scalars.remote(progress["step"], gauges)
        self._line.update({**progress, "workers": pool_stats.get("alive")})

    def _refuse_failure(self, stopped: str | None) -> None:
        """Raises RunError unless the learner has finished, or was stopped by a signal."""
        outcome = self._learner.outcome or {}
        error = self._learner.error or outcome.get("error")
        if error is None and stopped is not None and self._signals.received is None:
            error = stopped
        if error is None and not outcome.get("finished") and stopped is None:
            error = "the learner ended before its last batch"
        if error is not None:
            raise RunError(f"{error}\n{self._where()}")

    def _conclude(self) -> tuple[str, int]:
        """Evaluate the trained model and write everything; returns the closing words and the exit status."""
        self._collect_base(wait=True)
        published = self._actors.mailbox.fetch(None)
        assert published is not None and self._base is not None and self._learner.outcome is not None
        version, state = published
        say(f"evaluating the trained model: {len(self._base.images)} pictures")
        call = self._actors.evaluator.evaluate.remote(state, version.sha256)
        from learner.results import conclude  # meanwhile: the export needs the libraries that the run did without

        after = self._until(call)
        concluded = conclude(
            self._config, self._actors, self._learner.outcome, published, self._base, after, self._began_sec
        )
        ray.get(self._actors.telemetry.close.remote())
        return concluded

    def _until(self, call: Any) -> Any:
        """The call's answer. Raises Interrupted when a signal comes first."""
        while not ray.wait([call], timeout=POLL_SEC)[0]:
            if self._signals.received is not None:
                raise Interrupted(self._signals.received)
        return ray.get(call)

    def _announce(self) -> None:
        config, counters = self._config, self._run_dir.counters
        settings = config.learner
        if isinstance(config.data, OnlineData):
            what = f"prompts, {config.schedule.type}"
            who = f"{settings.ranks} learner rank(s), {config.rollout.workers.initial} rollout worker(s)"
        else:
            what = f"{config.data.type} from {config.data.path}"
            who = f"{settings.ranks} learner rank(s)"
        say(
            f"Run {config.run.name} in {self._run_dir.path}: {settings.max_batches} batches of "
            f"{settings.groups_per_batch} {what}, {who}"
        )
        if self._run_dir.checkpoint is not None:
            say(f"Resuming after batch {counters.batch} (step {counters.step}) from {self._run_dir.checkpoint}")
        say(f"Watch it with: tensorboard --logdir {self._run_dir.path / 'tb'}")
        if self._pool is not None:
            address = ray.get_runtime_context().gcs_address
            say(f"Scale it with: python -m rollout.scale WORKERS --run {config.run.name} --address {address}")

    def _resume_command(self) -> str:
        return f"python -m learner.main --config {self._run_dir.path / 'config.yaml'} --resume auto"

    def _where(self) -> str:
        return f"logs of all processes: /tmp/ray/session_latest/logs; after mending it: {self._resume_command()}"


def _answer(call: Any, otherwise: Any) -> Any:
    """A control actor's answer, or `otherwise` while it is being restarted."""
    try:
        return ray.get(call, timeout=_ANSWER_SEC)
    except GetTimeoutError:
        return otherwise
