"""Checkpoints of a preference model's training, committed like the main job's: the manifest comes last.

    run.dir/checkpoints/batch-00000500/engine/state/   DeepSpeed's shards: weights and optimiser
                                       COMMITTED.json   step, identity, checksums of all files

Noise, timesteps and the order of the rows belong to the step, so there is nothing else to keep.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from configs.spm import SpmConfig
from learner.checkpoint import commit, refuse_damage, remove_checkpoint
from learner.committed import ENGINE, CheckpointError, Counters, check_identity, checkpoint_path, read_manifest

_TAG = "state"


def save(config: SpmConfig, counters: Counters, engine: Any, rank: int) -> Path:
    """Write and commit a checkpoint, then remove those beyond `checkpoint.keep`. Collective."""
    path = checkpoint_path(config.run.path, counters.step)
    if rank == 0:
        remove_checkpoint(path)
    torch.distributed.barrier()
    engine.save_checkpoint(str(path / ENGINE), tag=_TAG, save_latest=False)
    torch.distributed.barrier()
    if rank == 0:
        commit(path, counters, identity(config), config.run.path, config.checkpoint.keep, more={})
    torch.distributed.barrier()
    return path


def load(path: Path, config: SpmConfig, engine: Any) -> Counters:
    """Restore weights and optimiser. Collective. Raises CheckpointError for another run's or a damaged checkpoint."""
    counters = check(path, config)
    refuse_damage(path, read_manifest(path))
    loaded, _ = engine.load_checkpoint(str(path / ENGINE), tag=_TAG, load_lr_scheduler_states=False)
    if loaded is None:
        raise CheckpointError(f"{path}: DeepSpeed could not load its shards")
    return counters


def check(path: Path, config: SpmConfig) -> Counters:
    """How far the checkpoint has come. Raises CheckpointError naming the first field that differs from `config`."""
    return check_identity(path, identity(config))


def identity(config: SpmConfig) -> dict[str, Any]:
    """The settings that a checkpoint is bound to: those that shape its files or give its numbers their meaning."""
    training = config.training
    return {
        "run.seed": config.run.seed,
        "base.pretrained": config.base.pretrained,
        "base.image_size": config.base.image_size,
        "scorer.clip": config.scorer.clip,
        "scorer.ablation": config.scorer.ablation,
        "data.source": config.data.source,
        "data.where": {name: list(values) for name, values in config.data.where.items()},
        "labels.by": config.labels.by,
        "training.ranks": training.ranks,
        "training.engine.zero_stage": training.engine.zero_stage,
        "training.micro_batch_pairs": training.micro_batch_pairs,
        "training.accumulation": training.accumulation,
    }
