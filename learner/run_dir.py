"""The run directory: taken by one live run at a time, used once, and gone on with only when that was asked for.

run.dir/config.yaml      the resolved configuration       run.dir/tb, metrics.jsonl   telemetry
run.dir/checkpoints/     committed checkpoints            run.dir/adapters/           published weights
run.dir/best/            the best weights by a metric     run.dir/lost_ranks.log      why ranks were started again
run.dir/run.lock         held by the live run             run.dir/lora or model, summary.json  what it leaves
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from configs.load import write_resolved
from configs.schema import AtelierConfig
from configs.spm import SpmConfig
from learner.committed import CheckpointError, Counters, check_checkpoint, find_checkpoint, list_committed
from learner.metrics_log import read_metrics

_LOCK, _CONFIG = "run.lock", "config.yaml"
_TRACES = (_CONFIG, "checkpoints")
_START_UP = ("metrics.jsonl", "tb", "adapters")
"""What actors create before the learner starts: no run yet, and removed when the start is given up."""


class RunDirError(ValueError):
    """The run directory cannot be used. The message says why and what to do."""


class RunDir:
    """A locked run directory and the checkpoint to go on from. Use it as a context manager."""

    def __init__(
        self,
        config: AtelierConfig | SpmConfig,
        resume: str | None,
        check: Callable[[Path, Any], Counters] = check_checkpoint,
    ) -> None:
        """
        resume: None, `auto`, or the path of a checkpoint or run directory.
        check: says how far a checkpoint has come, and raises CheckpointError where it is another run's.

        Raises RunDirError when the directory is in use by a live run, holds a run and `resume` is None, or cannot be
        written; CheckpointError when there is nothing to resume from or it belongs to another run.
        """
        self.path = config.run.path.resolve()
        self.checkpoint: Path | None = None
        self.counters = Counters()
        self._started = False
        self._found = {name for name in _START_UP if (self.path / name).exists()}
        fresh = not self.path.exists()
        self._check = check
        self._lock = self._take_lock()
        try:
            self._choose(config, resume)
        except ValueError:
            self.close()
            if fresh:
                self._remove_empty()
            raise

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, config: AtelierConfig | SpmConfig) -> None:
        """From now on the directory is used: the resolved configuration is in it."""
        write_resolved(config, self.path / _CONFIG)
        self._started = True

    def close(self) -> None:
        self._lock.close()

    def discard(self) -> None:
        """Give the directory back; where no run has begun in it, remove what the start left, and itself when empty."""
        if not self._started and not self._used:
            for name in _START_UP:
                if name not in self._found:
                    _remove(self.path / name)
            self._remove_empty()
        self.close()

    @property
    def _used(self) -> bool:
        return any((self.path / name).exists() for name in _TRACES)

    @property
    def _trained(self) -> bool:
        log = self.path / "metrics.jsonl"
        try:
            return log.exists() and any(line["step"] > 0 for line in read_metrics(log))
        except ValueError as error:
            raise RunDirError(f"run.dir {self.path}: {error}; mend the line, or choose another run.dir") from error

    def _take_lock(self) -> IO[str]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / _LOCK).open("a+")
        except OSError as error:
            raise RunDirError(f"run.dir {self.path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise RunDirError(
                f"run.dir {self.path}: in use by a live run (process {owner}); choose another run.name or run.dir"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    def _choose(self, config: AtelierConfig | SpmConfig, resume: str | None) -> None:
        committed = list_committed(self.path)
        if resume is None:
            if self._used:
                raise RunDirError(
                    f"run.dir {self.path}: holds a run already; choose another run.name or run.dir, "
                    f"or go on with it: --resume auto"
                )
            return
        if resume == "auto" and not committed and not self._trained:
            return  # lost before the first checkpoint, which comes before the first batch
        self.checkpoint = find_checkpoint(resume, self.path).resolve()
        self.counters = self._check(self.checkpoint, config)
        if self.checkpoint.parent.parent != self.path and committed:
            raise CheckpointError(
                f"{self.checkpoint}: is not this run's, and {self.path} has checkpoints of its own; "
                f"choose an unused run.dir to branch off into"
            )
        for later in committed:
            if later > self.checkpoint:  # or a learner that restarts would go on from there
                later.rename(_unused(later.with_name(f"abandoned-{later.name}")))

    def _remove_empty(self) -> None:
        (self.path / _LOCK).unlink(missing_ok=True)
        try:
            self.path.rmdir()
        except OSError:  # something else is in it
            return


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
