"""Telemetry: everything a run reports, written by one process, so that a resumed run has neither gaps nor duplicates.

    loop ─ scalars ─┐                    ┌─► run.dir/tb/            TensorBoard: one run, one directory
    main ─ queue ───┼─► Telemetry actor ─┼─► run.dir/metrics.jsonl  one line a step, merged
    main ─ images ──┘                    └─► progress()             what the console line shows

Resuming at step n removes whatever lies beyond n from both: event files are rewritten without it rather than only
marked (`purge_step`), because TensorBoard's fast data server does not act on the mark until a tag is written again.
A scalar's event is on disk before its line in metrics.jsonl: events without one, left by a death between the two, are
removed when the writer starts again, and the call that Ray repeats writes both.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from learner.event_writer import EventWriter
from learner.metrics_log import MetricsLog, read_metrics
from learner.progress import PROGRESS_TAGS
from rollout.actors import actor_name, control_options, was_restarted

if TYPE_CHECKING:
    from configs.schema import AtelierConfig

GROUPS = (
    "reward", "pairs", "loss", "ratio", "queue", "weights", "throughput", "eval", "appearance", "diversity", "memory",
)  # fmt: skip
_RATE_WINDOW_STEPS = 50  # the ETA follows the speed of this many latest steps
WORKER_MEMORY_TAG = "memory/rollout_worker_bytes"
_HPARAMS_TAG = "_hparams_/"  # TensorBoard's own prefix


class Telemetry:
    """The only writer of a run's `tb/` and `metrics.jsonl`. A plain class; `create_telemetry` wraps it for Ray."""

    def __init__(
        self,
        run_dir: str | Path,
        resume_step: int | None = None,
        *,
        total_steps: int | None = None,
        total_batches: int | None = None,
    ) -> None:
        """
        run_dir: created when missing.
        resume_step: the last optimiser step to keep; None leaves what both hold and adds to it.
        total_steps, total_batches: the run's planned length, for the progress line.
        """
        self._tb_dir = Path(run_dir) / "tb"
        self._log = MetricsLog(Path(run_dir) / "metrics.jsonl")
        self._totals = {"total_steps": total_steps, "total_batches": total_batches}
        self._started_sec = time.time()
        self._pace: deque[tuple[int, float]] = deque(maxlen=_RATE_WINDOW_STEPS)
        self._nonfinite = 0
        self._writer: EventWriter | None = None
        if resume_step is not None:
            self.resume_at(resume_step)
        else:
            drop_unlogged_events(self._tb_dir, Path(run_dir) / "metrics.jsonl")
            self._writer = EventWriter(self._tb_dir)

    def resume_at(self, step: int) -> None:
        """Forgets every scalar, image and final score beyond optimiser step `step`; the next ones follow it."""
        if self._writer is not None:
            self._writer.close()
        self._log.truncate(step)
        drop_later_events(self._tb_dir, step)
        self._writer = EventWriter(self._tb_dir, purge_step=step + 1)
        self._pace.clear()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes `{tag: value}` at optimiser step `step`; non-finite values too, which are counted.

        A repeated call (Ray repeats those that a lost actor was busy with) writes nothing again.
        Raises ValueError for a tag outside the known groups, before anything is written.
        """
        writer, now, known = self._open_writer(), time.time(), self._log.at(step)
        given = {_checked(tag): float(value) for tag, value in values.items()}
        plain = {tag: value for tag, value in given.items() if tag not in known or repr(known[tag]) != repr(value)}
        if not plain:
            return
        self._nonfinite += sum(not math.isfinite(value) for value in plain.values())
        for tag, value in plain.items():
            writer.scalar(tag, value, step, now)
        writer.flush()
        self._log.write(step, plain, now)
        if not self._pace or step > self._pace[-1][0]:
            self._pace.append((step, now))

    def images(self, step: int, pictures: Mapping[str, bytes | np.ndarray]) -> None:
        """Writes `{tag: picture}`: PNG bytes as they are, or uint8 [H, W, 3]. Raises ValueError for anything else."""
        writer = self._open_writer()
        encoded = [(_checked(tag), _png(tag, picture)) for tag, picture in pictures.items()]
        for tag, png in encoded:
            with Image.open(io.BytesIO(png)) as opened:
                writer.image(tag, png, opened.size, step)
        writer.flush()

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Writes a page of TensorBoard's TEXT tab."""
        writer = self._open_writer()
        writer.text(_checked(tag), markdown, step)
        writer.flush()

    def hparams(self, config: Mapping[str, bool | int | float | str], metrics: Mapping[str, float]) -> None:
        """Shows the run, its settings and its final scores in TensorBoard's HPARAMS tab.

        `metrics` are tags of the known groups. A score that the run has not just reported is written at its last step.
        """
        writer = self._open_writer()
        plain = {_checked(tag): float(value) for tag, value in metrics.items()}
        missing = {tag: value for tag, value in plain.items() if self._log.latest.get(tag) != value}
        if missing:
            self.scalars(self._log.last_step or 0, missing)
        writer.hparams(config, list(plain), self._log.last_step or 0)
        writer.flush()

    def progress(self) -> dict[str, float | None]:
        """What the console line shows (learner/progress.py); None for what is not known yet. Times in seconds."""
        latest = {field: self._log.latest.get(tag) for field, tag in PROGRESS_TAGS.items()}
        return {
            "step": self._log.last_step or 0,
            **self._totals,
            **latest,
            "elapsed_sec": time.time() - self._started_sec,
            "eta_sec": self._eta_sec(),
            "nonfinite_scalars": self._nonfinite,
        }

    def latest(self, tags: Sequence[str]) -> dict[str, float]:
        """The last value of each of these scalars that has one."""
        return {tag: float(self._log.latest[tag]) for tag in tags if tag in self._log.latest}

    def close(self) -> None:
        """Flushes and closes both files; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._log.close()
            self._writer = None

    def _open_writer(self) -> EventWriter:
        if self._writer is None:
            raise RuntimeError("telemetry is closed")
        return self._writer

    def _eta_sec(self) -> float | None:
        total = self._totals["total_steps"]
        if total is None or len(self._pace) < 2:
            return None
        (first_step, first_sec), (last_step, last_sec) = self._pace[0], self._pace[-1]
        return max(0, total - last_step) * (last_sec - first_sec) / (last_step - first_step)


class _TelemetryActor(Telemetry):
    """Telemetry under Ray: restarted after a death, it adds to what is on disk instead of resuming once more."""

    def __init__(self, run_dir: str, resume_step: int | None, **totals: int) -> None:
        super().__init__(run_dir, None if was_restarted() else resume_step, **totals)


def create_telemetry(config: AtelierConfig, resume_step: int | None = None) -> Any:
    """The run's telemetry as a named Ray actor, without CPUs or GPUs, on the caller's node, where `run.dir` is."""
    settings = config.learner
    options = control_options(actor_name("telemetry", config.run.name), max_concurrency=1)
    return (
        ray.remote(_TelemetryActor)
        .options(**options)
        .remote(
            str(config.run.path.resolve()),
            resume_step,
            total_steps=settings.max_batches * settings.updates_per_batch,
            total_batches=settings.max_batches,
        )
    )


def flatten_config(config: AtelierConfig) -> dict[str, bool | int | float | str]:
    """Dotted names and plain values of the whole configuration, as HPARAMS wants them; unset fields are left out."""
    flat: dict[str, bool | int | float | str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else key, child)
        elif isinstance(value, list | dict):
            flat[prefix] = str(value)
        elif value is not None:
            flat[prefix] = value

    walk("", config.model_dump(mode="json"))
    return flat


def drop_later_events(tb_dir: Path, last_step: int) -> None:
    """Rewrites each event file of `tb_dir` without what lies beyond `last_step`, hparams, and a torn last record."""
    for path in _event_files(tb_dir):
        _rewrite(path, lambda event: _kept(event, last_step))


def drop_unlogged_events(tb_dir: Path, metrics: Path) -> None:
    """Rewrites the event files of `tb_dir` that hold a scalar which no line of `metrics` (metrics.jsonl) has.

    Without any line nothing is removed: the file may have been lost, and the events must not go with it.
    """
    logged = {line["step"]: line for line in read_metrics(metrics)}

    def has_line(event: Event) -> bool:
        scalars = {value.tag for value in event.summary.value if value.HasField("simple_value")}
        return scalars <= logged.get(event.step, {}).keys()

    for path in _event_files(tb_dir) if logged else ():
        if not all(has_line(Event.FromString(record)) for record in RawEventFileLoader(str(path)).Load()):
            _rewrite(path, has_line)


def _event_files(tb_dir: Path) -> list[Path]:
    return sorted(tb_dir.glob("events.out.tfevents.*"))


def _rewrite(path: Path, keep: Callable[[Event], bool]) -> None:
    """Keeps these events of a file, up to the first torn one."""
    tmp = path.with_name("rewriting.tmp")  # a name that TensorBoard does not take for an event file
    with tmp.open("wb") as file:
        records = RecordWriter(file)
        for record in RawEventFileLoader(str(path)).Load():
            if keep(Event.FromString(record)):
                records.write(record)
        records.flush()
        os.fsync(file.fileno())
    tmp.replace(path)


def _kept(event: Event, last_step: int) -> bool:
    if event.WhichOneof("what") == "file_version":
        return True
    is_hparams = any(value.tag.startswith(_HPARAMS_TAG) for value in event.summary.value)
    return event.WhichOneof("what") == "summary" and event.step <= last_step and not is_hparams


def _checked(tag: str) -> str:
    group, slash, name = tag.partition("/")
    if group not in GROUPS or not slash or not name:
        raise ValueError(f"tag {tag!r}: must be <group>/<name> with a group out of {', '.join(GROUPS)}")
    return tag


def _png(tag: str, picture: bytes | np.ndarray) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"image {tag!r}: expected PNG bytes or uint8 [H, W, 3], got {picture.dtype} {picture.shape}")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
