"""Learner ranks in processes of their own on the real queue, sampler and telemetry, killed at a moment of saving.

The processes are forked from one that has imported everything: a new one takes a moment instead of many seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

import learner.checkpoint
import learner.loop
from configs.schema import AtelierConfig
from learner.committed import MANIFEST, CheckpointError, find_checkpoint
from learner.telemetry import Telemetry
from tests.learner.disks import make_full, make_read_only
from tests.learner.inprocess import Mailbox, Rollout, small_config
from tests.learner.ranks import PATIENCE

WORLD = 2
KILLED_BATCH = 2
"""The checkpoint that the killed run is writing; 0 is committed, and is the old one that goes."""
GIVE_UP_SEC = 240
REFUSED = 3
"""Exit code of a rank that raised CheckpointError."""


def _at(module: Any, name: str, call: int = 1, *, if_: Callable[..., bool] = lambda *_: True) -> Callable[[], None]:
    """Kills the process when the function is called that often with arguments that `if_` accepts."""

    def arm() -> None:
        real, left = getattr(module, name), [call]

        def bomb(*args: Any, **more: Any) -> Any:
            if if_(*args):
                left[0] -= 1
                if left[0] == 0:
                    _die()
            return real(*args, **more)

        setattr(module, name, bomb)

    return arm


def _half_a_shard() -> None:
    real = torch.save

    def bomb(state: Any, path: str, **more: Any) -> None:
        real(state, path, **more)
        os.truncate(path, os.path.getsize(path) // 2)
        _die()

    torch.save = bomb


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _is_manifest(_source: Any, target: Any, *_: Any) -> bool:
    return str(target).endswith(MANIFEST)


MOMENTS: Mapping[str, tuple[int, Callable[[], None]]] = {
    "before anything is written": (0, _at(learner.checkpoint, "_write")),
    "before the shards": (0, _at(torch, "save")),
    "in the middle of a shard": (0, _half_a_shard),
    "between the shards": (0, _at(torch, "save", 2)),
    "after the shards": (0, _at(learner.checkpoint, "save_generators")),
    "before the manifest": (0, _at(learner.checkpoint, "write_atomically")),
    "before the manifest's rename": (0, _at(os, "replace", if_=_is_manifest)),
    "after the manifest's rename": (KILLED_BATCH, _at(learner.checkpoint, "_sync_directory")),
    "before the old one is removed": (KILLED_BATCH, _at(learner.checkpoint, "remove_checkpoint", 2)),
    "while the old one is removed": (KILLED_BATCH, _at(shutil, "rmtree")),
}
"""Moment of rank 0's saving -> batch of the newest committed checkpoint afterwards, and how to arm the kill."""


def _no_room(_: Path) -> None:
    """From now on this process can write no file beyond 4 KB; the kernel's refusal is like a full disk's."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


DISKS: Mapping[str, Callable[[Path], None]] = {
    "no file beyond 4 KB": _no_room,
    "full disk": make_full,
    "read-only disk": make_read_only,
}
"""What the folder of checkpoints is like for rank 0 when it saves. The last two need the right to mount."""


class ScatteredRollout(Rollout):
    """Rank 0 has the queue and hands every rank its share."""

    def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None:
        first = super().take(batch, 0, world, learner_step)  # samples the batch
        others = [self._run(self.queue.take(batch, r, world, learner_step)) for r in range(1, world)]
        return _scatter([first, *others])


class Share:
    """What the other ranks have of the queue."""

    def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None:
        return _scatter([None] * world)


def _scatter(shares: list[Any]) -> Any:
    mine: list[Any] = [None]
    torch.distributed.scatter_object_list(mine, shares, src=0)
    return mine[0]


def crash_config(pipeline: Path, run_dir: Path) -> AtelierConfig:
    config = small_config(pipeline, run_dir, ranks=WORLD)
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep": 1})})


def train_ranks(pipeline: Path, run_dir: Path, scratch: Path, *, resume: bool = False, kill_at: str | None = None):
    """A learner of two ranks from start to end, or until one is killed: then everything is. Their exit codes."""
    scratch.mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ranks = [
        context.Process(target=_rank, args=(rank, pipeline, run_dir, scratch, resume, kill_at)) for rank in range(WORLD)
    ]
    try:
        for process in ranks:
            process.start()
        pending = {process.sentinel: process for process in ranks}
        while pending:
            ended = wait(list(pending), timeout=GIVE_UP_SEC)
            assert ended, "the ranks do not end"
            if any(pending.pop(sentinel).exitcode not in (0, REFUSED) for sentinel in ended):
                break
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def _rank(rank: int, pipeline: Path, run_dir: Path, scratch: Path, resume: bool, kill_at: str | None) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD))
    store = f"file://{scratch / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=PATIENCE)
    config = crash_config(pipeline, run_dir)
    if kill_at is not None and rank == 0:
        _arm_in_batch(kill_at)
    mailbox = Mailbox(run_dir / "adapters") if rank == 0 else None
    queue = ScatteredRollout(config, mailbox) if rank == 0 else Share()
    telemetry = Telemetry(run_dir) if rank == 0 else None
    start = find_checkpoint("auto", run_dir) if resume else None
    if resume:
        torch.manual_seed(12345)  # a new process's generators are somewhere else
    cpu = torch.device("cpu")
    try:
        learner.loop.train(rank, WORLD, config, queue, mailbox, telemetry, device=cpu, resume_from=start)
    except CheckpointError as error:
        (scratch / f"refused-{rank}").write_text(str(error))
        sys.exit(REFUSED)
    if telemetry is not None:
        telemetry.close()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _arm_in_batch(kill_at: str) -> None:
    real = learner.loop.save_checkpoint

    def save(run_dir: Path, counters: Any, *args: Any, **more: Any) -> Path:
        if counters.batch == KILLED_BATCH:
            DISKS[kill_at](run_dir / "checkpoints") if kill_at in DISKS else MOMENTS[kill_at][1]()
        return real(run_dir, counters, *args, **more)

    learner.loop.save_checkpoint = save
