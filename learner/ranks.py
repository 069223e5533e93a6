"""The learner's ranks under Ray Train, as the driver starts and follows them: without the model's libraries.

driver ── LearnerThread ──► RankTrainer ──► learner_rank × M ──► learner.rank.train_rank ──► learner.loop.train

Torch itself comes into driver and Ray Train's controller with Ray Train, once the trainer is made.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from configs.learner import EngineSection
from configs.rollout import ResourcesSection
from configs.schema import AtelierConfig
from learner.cluster import Actors
from rollout.actors import compute_options

_CONTROLLER_FAILURES = 3  # Ray Train would retry its start for ever


class RankSettings(Protocol):
    """What Ray Train needs to know of the ranks, whatever they train."""

    @property
    def ranks(self) -> int: ...

    @property
    def resources(self) -> ResourcesSection: ...

    @property
    def engine(self) -> EngineSection: ...


class LearnerThread(threading.Thread):
    """Runs the trainer while the driver watches. Afterwards `outcome` or `error` is set."""

    def __init__(self, trainer: Any) -> None:
        """`trainer`: of Ray Train, as `build_trainer` or `rank_trainer` give it."""
        super().__init__(name="learner", daemon=True)
        self._trainer = trainer
        self.outcome: Mapping[str, Any] | None = None
        """What rank 0 returned."""
        self.error: str | None = None

    def run(self) -> None:
        try:
            self.outcome = self._trainer.fit().return_value
        except Exception as error:  # whatever ends the learner is the driver's to report
            self.error = root_cause(error)


def build_trainer(config: AtelierConfig, actors: Actors, resume_from: Path | None) -> Any:
    """Ray Train over `learner_rank`."""
    given = {
        "config": config,
        "queue": actors.queue.actor,
        "mailbox": actors.mailbox.actor,
        "telemetry": actors.telemetry,
        "evaluator": actors.evaluator,
        "resume_from": resume_from,
    }
    return rank_trainer(learner_rank, given, config.learner, config.run.path, config.checkpoint.max_failures)


def rank_trainer(
    body: Callable[[dict[str, Any]], dict[str, Any]],
    given: dict[str, Any],
    settings: RankSettings,
    run_dir: Path,
    max_failures: int,
) -> Any:
    """Ray Train over `body(given)`: a fixed number of ranks, restarted together when one is lost (lost_ranks.py)."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from learner.process_group import NodeTorchConfig  # ray.train reads its settings when it is imported
    from learner.ray_trainer import NotedLosses, RankTrainer

    resources = settings.resources
    return RankTrainer(
        body,
        train_loop_config=given,
        torch_config=NodeTorchConfig(backend=backend(settings), timeout_s=math.ceil(settings.engine.timeout_sec)),
        scaling_config=ScalingConfig(
            num_workers=settings.ranks,
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom},
        ),
        run_config=RunConfig(
            name="learner",
            storage_path=str(run_dir / "ray_train"),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=_CONTROLLER_FAILURES),
            callbacks=[NotedLosses(run_dir.resolve())],
            worker_runtime_env=compute_options(resources)["runtime_env"],
        ),
    )


def learner_rank(given: dict[str, Any]) -> dict[str, Any]:
    """One rank, inside a Ray Train worker."""
    from learner.rank import train_rank  # here: the driver, which hands this function over, does without

    return train_rank(given)


def backend(settings: RankSettings) -> str:
    """nccl where every rank has a GPU to itself, else gloo; or what the configuration says."""
    if settings.engine.backend != "auto":
        return settings.engine.backend
    gpus = settings.resources.gpus
    return "nccl" if gpus >= 1 or (gpus > 0 and settings.ranks == 1) else "gloo"


def root_cause(error: BaseException) -> str:
    """What a rank raised, without Ray's and Ray Train's wrapping."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = next(iter(failures.items()))
        return f"learner rank {rank}: {root_cause(failure)}"
    for wrapped in ("cause", "controller_failure", "health_check_failure"):
        cause = getattr(error, wrapped, None)
        if isinstance(cause, BaseException) and cause is not error:
            return root_cause(cause)
    lines = str(error).strip().splitlines() or [""]
    said_last = "Traceback" in lines[0] or "The actor died" in lines[0]  # Ray says there how its process ended
    words = (lines[-1] if said_last else lines[0]).partition(" Some common causes")[0]
    return f"{type(error).__name__}: {words}"
