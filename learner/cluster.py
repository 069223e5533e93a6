"""Where the run meets Ray: the run's actors, and the learner's ranks under Ray Train.

    driver ── create_actors ──► mailbox · queue · telemetry · evaluator · pool ──► workers
       └───── LearnerThread ──► TorchTrainer ──► learner_rank × M ──► learner.loop.train

Nothing is decided here; every actor is a thin wrapper of a plain class.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import torch

from configs.data import OnlineData
from configs.learner import EngineSection
from configs.rollout import ResourcesSection
from configs.schema import AtelierConfig
from learner.checkpoint import CheckpointError, list_committed
from learner.datasets.books import BooksClient, create_books
from learner.datasets.offline import open_offline_queue
from learner.datasets.rows import DataError
from learner.evaluations import create_desk
from learner.interfaces import Queue
from learner.loop import train
from learner.telemetry import create_telemetry
from rollout.actors import compute_options
from rollout.evaluator import create_evaluator
from rollout.memory import peak_memory_bytes
from rollout.pool_actor import PoolClient, create_pool
from rollout.replay_actor import QueueClient, create_queue
from rollout.weights_actor import MailboxClient, create_mailbox

_CONTROLLER_FAILURES = 3  # Ray Train would retry its start for ever


@dataclass(frozen=True)
class Actors:
    """Handles and blocking clients of one run's actors; the pool comes later."""

    mailbox: MailboxClient
    queue: QueueClient | BooksClient
    """The replay queue, or the books of an offline run, whose ranks read the data set themselves."""
    telemetry: Any
    evaluator: Any


def create_actors(config: AtelierConfig, *, resume: bool) -> Actors:
    """Start mailbox, queue, telemetry and evaluator. Raises ValueError where a live run has the same name."""
    try:
        mailbox = create_mailbox(config)
        source: QueueClient | BooksClient = (
            QueueClient(create_queue(config, mailbox, resume=resume))
            if isinstance(config.data, OnlineData)
            else BooksClient(create_books(config))
        )
        return Actors(MailboxClient(mailbox), source, create_telemetry(config), create_evaluator(config))
    except ValueError as error:
        raise ValueError(f"run.name {config.run.name}: a live run on this cluster has this name; {error}") from error


def start_pool(config: AtelierConfig, prompts: tuple[str, ...], actors: Actors) -> PoolClient | None:
    """Start the rollout workers; an offline run has none."""
    if not isinstance(config.data, OnlineData):
        return None
    return PoolClient(create_pool(config, prompts, actors.queue.actor, actors.mailbox.actor))


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


class RankSettings(Protocol):
    """What Ray Train needs to know of the ranks, whatever they train."""

    @property
    def ranks(self) -> int: ...

    @property
    def resources(self) -> ResourcesSection: ...

    @property
    def engine(self) -> EngineSection: ...


def rank_trainer(
    body: Callable[[dict[str, Any]], dict[str, Any]],
    given: dict[str, Any],
    settings: RankSettings,
    run_dir: Path,
    max_failures: int,
) -> Any:
    """Ray Train over `body(given)`: a fixed number of ranks, restarted together when one is lost."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from learner.process_group import NodeTorchConfig  # ray.train reads its settings when it is imported

    resources = settings.resources
    return TorchTrainer(
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
            worker_runtime_env=compute_options(resources)["runtime_env"],
        ),
    )


def backend(settings: RankSettings) -> str:
    """nccl where every rank has a GPU to itself, else gloo; or what the configuration says."""
    if settings.engine.backend != "auto":
        return settings.engine.backend
    gpus = settings.resources.gpus
    return "nccl" if gpus >= 1 or (gpus > 0 and settings.ranks == 1) else "gloo"


def learner_rank(given: dict[str, Any]) -> dict[str, Any]:
    """One rank, inside a Ray Train worker. Errors that a restart cannot cure are returned, all others are raised."""
    from ray.train import get_context
    from ray.train.torch import get_device

    config: AtelierConfig = given["config"]
    context = get_context()
    torch.set_num_threads(max(1, int(config.learner.resources.cpus)))
    device = get_device() if config.learner.resources.gpus else torch.device("cpu")
    committed = list_committed(config.run.path)  # newer than what the driver chose, after a restart
    evaluations = create_desk(given["evaluator"], given["telemetry"], given["queue"], config)
    try:
        result = train(
            context.get_world_rank(),
            context.get_world_size(),
            config,
            _queue(config, given["queue"], device),
            MailboxClient(given["mailbox"]),
            TelemetryClient(given["telemetry"]),
            device=device,
            resume_from=committed[-1] if committed else given["resume_from"],
            evaluate=evaluations,
        )
    except (CheckpointError, DataError, FloatingPointError) as error:
        return {"error": str(error)}
    if result.finished:
        evaluations.wait()
    if evaluations.failure is not None:
        return {"error": evaluations.failure}
    return {**asdict(result), "peak_memory_bytes": peak_memory_bytes(device)}


def _queue(config: AtelierConfig, actor: Any, device: torch.device) -> Queue:
    """What this rank takes its batches from. Raises DataError for a data set that cannot be read."""
    if isinstance(config.data, OnlineData):
        return QueueClient(actor)
    return open_offline_queue(config, BooksClient(actor), device)


class TelemetryClient:
    """`learner.interfaces.MetricsSink` over the actor: returns once a value is on disk."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        ray.get(self._actor.scalars.remote(step, dict(values)))

    def resume_at(self, step: int) -> None:
        ray.get(self._actor.resume_at.remote(step))


def root_cause(error: BaseException) -> str:
    """What a rank raised, without Ray's and Ray Train's wrapping."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = next(iter(failures.items()))
        return f"learner rank {rank}: {root_cause(failure)}"
    cause = getattr(error, "cause", None) or getattr(error, "controller_failure", None)
    if isinstance(cause, BaseException) and cause is not error:
        return root_cause(cause)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1] if 'Traceback' in lines[0] else lines[0]}"
