"""One learner rank inside a Ray Train worker: the run's actors around `learner.loop.train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import ray
import torch
from ray.train import get_context
from ray.train.torch import get_device

from configs.data import OnlineData
from configs.schema import AtelierConfig
from learner.committed import CheckpointError, list_committed
from learner.datasets.books import BooksClient
from learner.datasets.offline import open_offline_queue
from learner.datasets.rows import DataError
from learner.engine import EngineError
from learner.evaluations import create_desk
from learner.interfaces import Queue
from learner.loop import train
from rollout.memory import peak_memory_bytes
from rollout.replay_actor import QueueClient
from rollout.weights_actor import MailboxClient


def train_rank(given: dict[str, Any]) -> dict[str, Any]:
    """Train what `learner.ranks.build_trainer` gave. Errors that a restart cannot cure are returned, others raised."""
    config: AtelierConfig = given["config"]
    context = get_context()
    torch.set_num_threads(max(1, int(config.learner.resources.cpus)))
    device = get_device() if config.learner.resources.gpus else torch.device("cpu")
    committed = list_committed(config.run.path)  # newer than what the driver chose, after a restart
    evaluations = create_desk(given["evaluator"], given["telemetry"], given["queue"], config)
    try:
        queue = _queue(config, given["queue"], device)
        result = train(
            context.get_world_rank(),
            context.get_world_size(),
            config,
            queue,
            MailboxClient(given["mailbox"]),
            TelemetryClient(given["telemetry"]),
            device=device,
            resume_from=committed[-1] if committed else given["resume_from"],
            evaluate=evaluations,
        )
    except (CheckpointError, DataError, EngineError, FloatingPointError) as error:
        return {"error": str(error)}
    if result.finished:
        evaluations.wait(given_up=lambda: queue.stats()["closed"] is not None)  # a signal does not wait for them
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
