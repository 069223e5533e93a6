"""The weight mailbox: the newest trained weights, versioned, checksummed, on disk, and handed out by reference.

    learner rank 0 ── publish(version, bytes) ──► WeightMailbox ── wait_for / wait_change ──► pool: a batch is released
                                                     │    │  └─ latest() ─► (version, [ref]) ──► workers, between chunks
             adapters/<step>.safetensors ◄───────────┘    └──── history() ───────────► queue: which it accepts
             tmp + fsync + rename, reloaded after a restart
             adapters/<step>.json: a version that groups may still carry, whose weights were let go

`publish` wakes everyone who waits. A learner that restarts from a checkpoint publishes with a higher `attempt`: that
takes back every version of later batches, which no group may carry any more.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from rollout.array_bytes import checksum_of_arrays, read_arrays, read_metadata
from rollout.versions import AdapterVersion as AdapterVersion
from rollout.versions import in_force
from rollout.wakeup import Wakeup

logger = logging.getLogger(__name__)
_METADATA_KEY = "version"
_KEEP_BYTES = 1 << 30  # a whole network is gigabytes: then no more are kept than a restart may need
_KEPT_IN_ANY_CASE = 2  # the newest, and the one before for a restart that finds the newest damaged


class WeightMailbox:
    """Plain asyncio class; `store` keeps bytes where workers can fetch them (`ray.put`) and returns the reference."""

    def __init__(
        self, directory: Path, *, store: Callable[[bytes], Any], keep_files: int = 8, keep_bytes: int = _KEEP_BYTES
    ) -> None:
        """Reads the newest valid file of `directory`, created when missing.

        The `keep_files` newest versions stay there: with their weights as far as those take `keep_bytes` together (the
        newest two in any case), the others by name.
        """
        self._directory = directory
        self._store = store
        self._keep_files = keep_files
        self._keep_bytes = keep_bytes
        self._changed = Wakeup()
        self._closed: str | None = None
        self._current: tuple[AdapterVersion, Any] | None = None
        self._published: list[AdapterVersion] = []
        directory.mkdir(parents=True, exist_ok=True)
        self._reload()

    async def publish(self, version: AdapterVersion, state: bytes) -> None:
        """Persist and hand out a new adapter (safetensors bytes). Publishing the same version again changes nothing.

        Raises ValueError, with nothing changed, when the bytes do not match the version's checksum or the version is
        not newer than the current one; OSError when the file cannot be written.
        """
        current = self.version
        if version == current:
            return
        if current is not None and version.order <= current.order:
            raise ValueError(
                f"published (attempt, batch) {version.order} is not after the current {current.order}; "
                "a learner that starts again publishes with attempt = latest().attempt + 1"
            )
        adapter = _verified(version, state)
        data = save_safetensors(adapter, metadata={_METADATA_KEY: json.dumps(asdict(version))})
        write_atomically(self._directory / f"{version.step}.safetensors", data)
        self._make_current(version, data)
        self._prune()
        self._changed.fire()

    @property
    def version(self) -> AdapterVersion | None:
        """The current version; None before the first publish."""
        return None if self._current is None else self._current[0]

    async def latest(self) -> tuple[AdapterVersion, list[Any]] | None:
        """The current version and, inside a list so that Ray does not resolve it, the reference of its bytes."""
        return None if self._current is None else (self._current[0], [self._current[1]])

    async def history(self) -> list[AdapterVersion]:
        """All versions ever published, as far as they are known, oldest first. See `in_force`."""
        return list(self._published)

    async def wait_for(self, min_batch: int, timeout_sec: float | None = None) -> AdapterVersion | None:
        """The current version once its batch is at least `min_batch`; None on timeout or `close`."""
        return await self._wait(lambda version: version.batch >= min_batch, timeout_sec)

    async def wait_change(
        self, known: AdapterVersion | None, timeout_sec: float | None = None
    ) -> AdapterVersion | None:
        """The current version once it is another than `known`; None on timeout or `close`."""
        return await self._wait(lambda version: version != known, timeout_sec)

    async def close(self, reason: str) -> None:
        """Wake everyone who waits; they get None from now on."""
        self._closed = reason
        self._changed.fire()

    async def _wait(self, accept: Callable[[AdapterVersion], bool], timeout_sec: float | None) -> AdapterVersion | None:
        def ready() -> bool:
            return self.version is not None and accept(self.version)

        await self._changed.until(lambda: self._closed is not None or ready(), timeout_sec)
        return self.version if self._closed is None and ready() else None

    def _make_current(self, version: AdapterVersion, data: bytes) -> None:
        self._current = (version, self._store(data))
        if version not in self._published[-1:]:
            self._published.append(version)

    def _reload(self) -> None:
        for leftover in self._directory.glob("*.tmp"):
            leftover.unlink()
        versions: set[AdapterVersion] = set()
        newest: tuple[AdapterVersion, bytes] | None = None
        for path in self._directory.glob("*.safetensors"):
            try:
                version, data = _read(path)
            except (OSError, KeyError, TypeError, ValueError) as error:
                logger.error("skipping damaged weights in %s: %s", path, error)
                continue
            versions.add(version)
            if newest is None or version.order > newest[0].order:
                newest = version, data
        if newest is not None:
            versions |= {version for version in self._without_weights() if version.order < newest[0].order}
            self._published = sorted(versions, key=lambda version: version.order)
            self._make_current(*newest)

    def _without_weights(self) -> list[AdapterVersion]:
        found = []
        for path in self._directory.glob("*.json"):
            try:
                found.append(AdapterVersion(**json.loads(path.read_bytes())))
            except (OSError, TypeError, ValueError) as error:
                logger.error("skipping damaged record of a version %s: %s", path, error)
        return found

    def _prune(self) -> None:
        kept = in_force(self._published)[-self._keep_files :]
        room = self._keep_bytes
        for place, version in enumerate(reversed(kept)):
            weights, record = (self._directory / f"{version.step}.{kind}" for kind in ("safetensors", "json"))
            if not weights.exists():
                continue
            room -= weights.stat().st_size
            if room >= 0 or place < _KEPT_IN_ANY_CASE:
                record.unlink(missing_ok=True)  # of a former attempt
            else:
                write_atomically(record, json.dumps(asdict(version)).encode())
                weights.unlink()
        steps = {version.step for version in kept}
        for path in (*self._directory.glob("*.safetensors"), *self._directory.glob("*.json")):
            if path.stem.isdigit() and int(path.stem) not in steps:
                path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[AdapterVersion, bytes]:
    data = path.read_bytes()
    version = AdapterVersion(**json.loads(read_metadata(data)[_METADATA_KEY]))
    _verified(version, data)
    return version, data


def _verified(version: AdapterVersion, data: bytes) -> dict[str, np.ndarray]:
    try:
        adapter = read_arrays(data)
    except ValueError as error:
        raise ValueError(f"no published weights, step {version.step}: {error}") from error
    if (found := checksum_of_arrays(adapter)) != version.sha256:
        raise ValueError(f"weights of step {version.step} have checksum {found[:12]}, not {version.sha256[:12]}")
    return adapter


def write_atomically(path: Path, data: bytes) -> None:
    """Write `path` so that after a crash at any moment it holds either its old or its new content, whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
