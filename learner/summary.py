"""summary.json and the closing words of a run: what it did, and where everything is.

summary.json is for machines: its fields are typed, its books must close, and it appears whole or not at all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from configs.model import ModelSection
from learner.datasets.books import BAD_ROWS
from learner.loading_code import base_lines, lora_lines
from learner.progress import format_duration
from rollout.assets import pipeline_path
from rollout.intervals import Interval
from rollout.weights import write_atomically


class _Strict(BaseModel):
    """Unknown keys are refused; non-finite numbers become strings (NaN, Infinity), as in metrics.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class GroupBooks(_Strict):
    """Preference groups: produced = trained + dropped + queued."""

    produced: int = Field(ge=0)
    trained: int = Field(ge=0)
    dropped: dict[str, int]
    """Reason -> number of groups."""
    queued: int = Field(ge=0)

    @model_validator(mode="after")
    def _books_close(self) -> GroupBooks:
        dropped = sum(self.dropped.values())
        if self.produced != self.trained + dropped + self.queued:
            raise ValueError(
                f"groups: {self.produced} produced, but {self.trained} trained + {dropped} dropped + "
                f"{self.queued} queued = {self.trained + dropped + self.queued}"
            )
        return self


class RewardEnds(_Strict):
    """The mean reward of finished rollouts in the first and in the last batch."""

    first: float
    last: float


class EvaluationEnds(_Strict):
    """Metrics on the held-out prompts, before and after training."""

    scorer: str
    """Full name of the scorer whose mean is `reward`: kind, version, weights, preparation of pictures."""
    before: dict[str, float]
    after: dict[str, float]


class BadRowLine(_Strict):
    """A row of the data set that could not be used."""

    where: str
    """File and row."""
    reason: str


class DataBooksSummary(_Strict):
    """An offline run's data set."""

    epoch_rows: int = Field(ge=0)
    """Rows of one epoch: those that data.where and data.limit leave, bad ones included."""
    rows_without_preference: int = Field(ge=0)
    """Ties and rows without a label, left out."""
    bad_rows: list[BadRowLine]
    """Rows that were replaced (data.on_bad_row: skip)."""
    cache_hits: int = Field(ge=0)
    cache_misses: int = Field(ge=0)
    cache_corrupt: int = Field(ge=0)
    """Damaged entries of the latent cache, made anew."""


class Summary(_Strict):
    """What summary.json holds."""

    steps: int = Field(ge=0)
    """Optimiser steps."""
    wall_sec: float = Field(ge=0)
    groups: GroupBooks
    pairs_trained: int = Field(ge=0)
    reward: RewardEnds
    eval: EvaluationEnds
    peak_memory_bytes: dict[str, int]
    """Role -> the most that one process of it held."""
    adapter_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """`adapter_checksum` of the exported weights: a LoRA's, or those of the whole network."""
    without_effect: str | None = None
    """Why the run changed nothing; None where it did."""
    data: DataBooksSummary | None = None
    """None for a run on rollouts."""


def write_summary(run_dir: Path, summary: Summary) -> Path:
    """Write run_dir/summary.json, whole or not at all; returns its path."""
    path = run_dir / "summary.json"
    write_atomically(path, (summary.model_dump_json(indent=2) + "\n").encode())
    return path


def read_summary(path: Path) -> Summary:
    """Inverse of `write_summary`. Raises ValueError (pydantic's, naming the field) for anything else."""
    return Summary.model_validate_json(path.read_bytes())


def closing_text(
    run_dir: Path,
    summary: Summary,
    *,
    base: ModelSection,
    grid: Path,
    checkpoints: Path,
    differences: Mapping[str, Interval],
    lora: Path | None = None,
    model: Path | None = None,
    best: Path | None = None,
    drift: Mapping[str, float] | None = None,
) -> str:
    """The last thing on the console: the result with its 95 % intervals, where the files are, and what to run next.

    base: what was trained. lora, model: the exported folder, one of the two. best: that of the best weights, where some
    were kept. differences: after - before, may be empty. drift: as `EvalResult.drift`. Paths below the working
    directory are shown relative to it.
    """
    lines = ["", f"Finished {summary.steps} steps in {format_duration(summary.wall_sec)}.", ""]
    if summary.without_effect is not None:
        lines += [f"WARNING: this run changed nothing: {summary.without_effect}.", ""]
    before, after = summary.eval.before, summary.eval.after
    width = max((len(name) for name in before), default=0)
    for name in (name for name in before if name in after):
        change = differences.get(name)
        interval = f"  ({change.mean:+.4g}, 95 % interval {change.low:+.4g} .. {change.high:+.4g})" if change else ""
        lines.append(f"  {name:<{width}}  {before[name]:9.4g} -> {after[name]:<9.4g}{interval}".rstrip())
    lines += ["", f"  reward: the mean score of {summary.eval.scorer}"]
    if drift:
        lines += ["", "Changes of the pictures from the starting model, same prompts and seeds:", ""]
        lines += [f"  {tag:<{max(map(len, drift))}}  {change:+.4g}" for tag, change in drift.items()]
    if summary.data is not None and (bad := len(summary.data.bad_rows)):
        lines += ["", f"  Bad rows, replaced by others: {bad}, listed in {_shown(run_dir / BAD_ROWS)}"]
    found = pipeline_path(base.pretrained)
    place = (_shown(Path(found)) if Path(found).exists() else found) if model is None else _shown(model)
    names, load_base = base_lines(base, place, "DiffusionPipeline")
    places = {
        "TensorBoard": f"{_tensorboard()} --logdir {_shown(run_dir / 'tb')}",
        "Before/after": _shown(grid),
        **({"LoRA": _shown(lora)} if lora is not None else {}),
        **({"Model": _shown(model)} if model is not None else {}),
        **({"Best weights": _shown(best)} if best is not None else {}),
        "Checkpoints": _shown(checkpoints),
        "Summary": _shown(run_dir / "summary.json"),
    }
    lines += ["", *(f"  {name + ':':<14}{place}" for name, place in places.items()), ""]
    lines += [
        f"Use the {'model' if lora is None else 'LoRA'} with diffusers:",
        "",
        f"  from diffusers import {', '.join(names)}",
        f"  {load_base}",
        *([] if lora is None else [f"  {line}" for line in lora_lines(base, _shown(lora))]),
        "",
    ]
    return "\n".join(lines)


def _shown(path: Path) -> str:
    """Relative to the working directory where the path lies below it."""
    absolute = Path(os.path.abspath(path))  # not resolved: a virtual environment's programs are links
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _tensorboard() -> str:
    """The command of this Python's environment, so that it runs without activating anything."""
    beside = Path(sys.executable).with_name("tensorboard")
    return _shown(beside) if beside.exists() else "tensorboard"
