"""Committed checkpoints: where they are, how far they have come, and to which settings they are bound. Without torch.

What is inside one, and how it is written and read: learner/checkpoint.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.data import OnlineData
from configs.schema import AtelierConfig

FORMAT_VERSION = 1
MANIFEST = "COMMITTED.json"
ENGINE = "engine"
"""Folder of DeepSpeed's shards in a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or belongs to another run. The message says what differs."""


@dataclass(frozen=True)
class Counters:
    """How far a run has come."""

    batch: int = 0
    """Global batches trained."""
    step: int = 0
    """Optimiser steps; also the telemetry's last step."""
    skipped_updates: int = 0
    """Steps that changed nothing, because a loss or gradient was not finite."""


def checkpoint_path(run_dir: Path, batch: int) -> Path:
    return run_dir / "checkpoints" / f"batch-{batch:08d}"


def list_committed(run_dir: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    return sorted(path.parent for path in (run_dir / "checkpoints").glob(f"batch-*/{MANIFEST}"))


def find_checkpoint(resume: str, run_dir: Path) -> Path:
    """The checkpoint that `--resume auto` or `--resume PATH` means. Raises CheckpointError where there is none.

    PATH is a checkpoint, or a run directory, whose newest one is taken.
    """
    root = run_dir if resume == "auto" else Path(resume)
    if (root / MANIFEST).is_file():
        return root
    if committed := list_committed(root):
        return committed[-1]
    if (root / ENGINE).exists():
        raise CheckpointError(
            f"{root}: this checkpoint was never committed (no {MANIFEST}); resume from an earlier one"
        )
    raise CheckpointError(f"{root}: no committed checkpoint here; give another path, or start a new run")


def check_checkpoint(path: Path, config: AtelierConfig) -> Counters:
    """How far the checkpoint has come. Raises CheckpointError naming the first field that differs from `config`."""
    return check_identity(path, identity(config))


def check_identity(path: Path, bound_to: Mapping[str, Any]) -> Counters:
    """`check_checkpoint` against fields as `commit` wrote them."""
    manifest = read_manifest(path)
    for field, wanted in bound_to.items():
        if (found := manifest["identity"].get(field)) != wanted:
            raise CheckpointError(
                f"{path}: {field} is {found} in the checkpoint and {wanted} in this run; "
                f"set {field}={found}, or start a new run"
            )
    return Counters(**manifest["counters"])


def read_manifest(path: Path) -> dict[str, Any]:
    """COMMITTED.json of a checkpoint. Raises CheckpointError when it is missing, damaged or of another format."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format {manifest['format']}; this version reads {FORMAT_VERSION}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path / MANIFEST}: cannot be read: {error}") from error
    return manifest


def identity(config: AtelierConfig) -> dict[str, Any]:
    """The settings that a checkpoint is bound to: those that shape its files or give its numbers their meaning."""
    learner = config.learner
    return {
        "model.family": config.model.family,
        "model.pretrained": config.model.pretrained,
        "model.trainable": config.model.trainable,
        "model.init_lora": config.model.init_lora,
        "model.init_lora_mode": config.model.init_lora_mode,
        "model.lora.rank": config.model.lora.rank,
        "model.lora.alpha": config.model.lora.scale_numerator,
        "model.lora.target_modules": list(config.model.lora.target_modules),
        "learner.objective.type": learner.objective.type,
        "learner.objective.prompt_history": getattr(learner.objective, "prompt_history", None),
        "learner.ranks": learner.ranks,
        "learner.engine.zero_stage": learner.engine.zero_stage,
        "learner.engine.offload": learner.engine.offload,
        "learner.groups_per_batch": learner.groups_per_batch,
        "learner.updates_per_batch": learner.updates_per_batch,
        "schedule.type": config.schedule.type,
        "prompts.source": config.prompts.source,
        "prompts.limit": config.prompts.limit,
        "run.seed": config.run.seed,
        **_data_identity(config),
    }


def _data_identity(config: AtelierConfig) -> dict[str, Any]:
    """What decides which examples a batch holds. The files themselves are checked by whoever reads them."""
    data = config.data
    if isinstance(data, OnlineData):
        return {"data.type": data.type}
    return {
        "data.type": data.type,
        "data.where": dict(data.where),
        "data.limit": data.limit,
        "data.shuffle_blocks": data.shuffle_blocks,
    }
