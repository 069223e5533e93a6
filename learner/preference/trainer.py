"""One rank of a preference model's training inside a Ray Train worker."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from configs.spm import SpmConfig
from learner.committed import CheckpointError, list_committed
from learner.datasets.rows import DataError
from learner.engine import EngineError
from learner.preference.train import train_preference
from learner.telemetry import Telemetry


def preference_rank(given: dict[str, Any]) -> dict[str, Any]:
    """Errors that a restart cannot cure are returned, all others are raised."""
    from ray.train import get_context
    from ray.train.torch import get_device

    config: SpmConfig = given["config"]
    context = get_context()
    torch.set_num_threads(max(1, int(config.training.resources.cpus)))
    device = get_device() if config.training.resources.gpus else torch.device("cpu")
    committed = list_committed(config.run.path)  # newer than what the driver chose, after a restart
    resume_from: Path | None = committed[-1] if committed else given["resume_from"]
    rank = context.get_world_rank()
    metrics = None
    if rank == 0:  # a restart before the first checkpoint begins anew
        metrics = Telemetry(config.run.path, None if resume_from else -1, total_steps=config.training.max_steps)
    try:
        result = train_preference(
            rank, context.get_world_size(), config, metrics, device=device, resume_from=resume_from
        )
    except (CheckpointError, DataError, EngineError, FloatingPointError) as error:
        return {"error": str(error)}
    finally:
        if metrics is not None:
            metrics.close()
    return asdict(result)
