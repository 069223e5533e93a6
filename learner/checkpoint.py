"""Checkpoints: everything that a run needs to go on as if nothing had happened, chosen only when it was committed.

    run.dir/checkpoints/batch-00000040/
        engine/state/...            DeepSpeed's shards: trained weights and optimiser, one file set a rank
        rng-rank<r>.safetensors     random generators of rank r
        queue.safetensors           groups that wait, books, prompt cursor
        rewards.safetensors         DDPO's latest rewards of each prompt
        COMMITTED.json              written last, by rename, after a barrier: counters, identity, checksums of all files

A directory without COMMITTED.json is what a crash left behind: never loaded, removed by the next save.
Shards are DeepSpeed's own pickles, so a checkpoint is to be trusted like code: load none from strangers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from configs.schema import AtelierConfig
from learner.agreement import first_fault
from learner.committed import (
    ENGINE,
    FORMAT_VERSION,
    MANIFEST,
    CheckpointError,
    Counters,
    check_checkpoint,
    checkpoint_path,
    identity,
    list_committed,
    read_manifest,
)
from learner.generators import load_generators, save_generators
from rollout.policy import DiffusionPolicy
from rollout.weights import write_atomically

REWARDS = "rewards.safetensors"
SMALL_FILES = 1 << 20
"""Of a rank's shards: names, counters, the padding of partitions."""
_TAG, _QUEUE = "state", "queue.safetensors"


def save_checkpoint(
    run_dir: Path,
    counters: Counters,
    config: AtelierConfig,
    *,
    engine: Any,
    policy: DiffusionPolicy,
    rank: int,
    queue_state: bytes | None,
    rewards_state: bytes | None = None,
) -> Path:
    """Write and commit a checkpoint, then remove all others beyond `checkpoint.keep`. Collective.

    Rank 0 has `queue_state`, and `rewards_state` where there is one. Raises CheckpointError on every rank when there is
    no place for it; what was committed before stays.
    """
    path = checkpoint_path(run_dir, counters.batch)
    _all_or_none(path, lambda: _begin(path, queue_state or b"", rewards_state) if rank == 0 else None)
    most = shard_bytes(policy, config.learner.engine.zero_stage, rank, config.learner.ranks)
    _all_or_none(path, lambda: _reserve(path / f"reserve-{rank}", most))
    engine.save_checkpoint(str(path / ENGINE), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)
    save_generators(path / f"rng-rank{rank}.safetensors", policy.device)
    torch.distributed.barrier()
    if rank == 0:
        commit(
            path, counters, identity(config), run_dir, config.checkpoint.keep, more={"adapter": trained_shapes(policy)}
        )
    torch.distributed.barrier()
    return path


def commit(
    path: Path, counters: Counters, bound_to: Mapping[str, Any], run_dir: Path, keep: int, more: Mapping[str, Any]
) -> None:
    """Write the manifest of the files in `path`, then remove all checkpoints but the newest `keep`. Rank 0 only."""
    manifest = {
        "format": FORMAT_VERSION,
        "counters": asdict(counters),
        "identity": dict(bound_to),
        **more,
        "files": {str(file.relative_to(path)): _digest(file) for file in _files(path)},
    }
    write_atomically(path / MANIFEST, json.dumps(manifest, indent=1).encode())
    _sync_directory(path.parent)
    kept = list_committed(run_dir)[-keep:]
    for other in sorted(path.parent.glob("batch-*")):
        if other not in kept:  # an old one, or what a crash left
            remove_checkpoint(other)


def _begin(path: Path, queue_state: bytes, rewards_state: bytes | None) -> None:
    remove_checkpoint(path)
    path.mkdir(parents=True)
    _write(path / _QUEUE, queue_state)
    if rewards_state is not None:
        _write(path / REWARDS, rewards_state)


def _all_or_none(path: Path, write: Callable[[], None]) -> None:
    """Write on every rank. Raises CheckpointError on all when one cannot: the others would wait in a collective."""
    problem: str | None = None
    try:
        write()
    except OSError as error:
        problem = f"{error.filename or path}: {error.strerror}"
    if (found := first_fault(problem)) is not None:
        raise CheckpointError(
            f"{path}: this checkpoint cannot be written ({found}); the committed ones before it stay. Make room, then "
            f"go on with --resume auto"
        )


def shard_bytes(policy: DiffusionPolicy, zero_stage: int, rank: int, ranks: int) -> int:
    """The most that a rank writes: weights, their float32 copy, two moments; what is not partitioned is rank 0's."""
    trained = sum(getattr(p, "ds_numel", p.numel()) for _, p in policy.trainable_parameters())
    partitioned = {0: 0, 1: 12, 2: 12, 3: 16}[zero_stage] * math.ceil(trained / ranks)
    whole = {0: 16, 1: 4, 2: 4, 3: 0}[zero_stage] * trained if rank == 0 else 0
    return partitioned + whole + SMALL_FILES


def _reserve(path: Path, size: int) -> None:
    """Raises OSError when so many bytes do not fit. DeepSpeed would find out between two of its collectives."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, {size} bytes wanted", str(path)) from error
    finally:
        os.close(descriptor)
        path.unlink()


def load_checkpoint(
    path: Path, config: AtelierConfig, *, engine: Any, policy: DiffusionPolicy, rank: int
) -> tuple[Counters, bytes | None]:
    """Restore weights, optimiser and this rank's generators; returns counters and, on rank 0, the queue's state.

    Collective. Raises CheckpointError, before anything changes, for a checkpoint of another run or damaged files.
    """
    counters = check_checkpoint(path, config)
    manifest = read_manifest(path)
    if (found := manifest["adapter"]) != (wanted := trained_shapes(policy)):
        name = next(name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name))
        raise CheckpointError(
            f"{path}: trained weight {name} is {found.get(name, 'missing')} in the checkpoint and "
            f"{wanted.get(name, 'missing')} in this model; resume with the model that it was made with"
        )
    refuse_damage(path, manifest, unread=() if rank == 0 else (_QUEUE,))
    loaded, _ = engine.load_checkpoint(
        str(path / ENGINE), tag=_TAG, load_module_strict=False, load_lr_scheduler_states=False
    )
    if loaded is None:
        raise CheckpointError(f"{path}: DeepSpeed could not load its shards")
    load_generators(path / f"rng-rank{rank}.safetensors", policy.device)
    return counters, (path / _QUEUE).read_bytes() if rank == 0 else None


def refuse_damage(path: Path, manifest: Mapping[str, Any], unread: Sequence[str] = ()) -> None:
    """Raises CheckpointError where a file is not the one that was committed; those of `unread` are not looked at."""
    for name, digest in manifest["files"].items():
        if name not in unread and _digest(path / name) != digest:
            raise CheckpointError(f"{path / name}: damaged (its checksum differs); resume from another checkpoint")


def trained_shapes(policy: DiffusionPolicy) -> dict[str, list[int]]:
    """Name and shape of every trainable tensor, whole shapes under ZeRO-3 too."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in policy.trainable_parameters()}


def _files(path: Path) -> list[Path]:
    """What belongs to a checkpoint; DeepSpeed's conversion scripts beside its shards do not."""
    return sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in (".pt", ".safetensors"))


def _digest(path: Path) -> str:
    """sha256 of a file, after it reached the disk."""
    try:
        _sync(path)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except FileNotFoundError:
        return "missing"


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_checkpoint(path: Path) -> None:
    """The manifest goes first, so that a half-removed checkpoint is never taken for a committed one."""
    (path / MANIFEST).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)
