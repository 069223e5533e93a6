"""What a finished run leaves: final evaluation, before/after grid, LoRA or model, summary.json, closing words."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from torch import Tensor

from configs.data import OnlineData
from configs.schema import AtelierConfig
from learner.best import ADAPTER, FOLDER, keep_if_best, read_best
from learner.cluster import Actors
from learner.datasets.books import read_bad_rows
from learner.export import export_lora
from learner.export_model import export_model
from learner.metrics_log import read_metrics
from learner.summary import (
    BadRowLine,
    DataBooksSummary,
    EvaluationEnds,
    GroupBooks,
    RewardEnds,
    Summary,
    closing_text,
    write_summary,
)
from learner.telemetry import WORKER_MEMORY_TAG, flatten_config
from rollout.adapter import changes_nothing, deserialise_adapter
from rollout.contact_sheet import before_after
from rollout.eval_result import EvalResult, differences
from rollout.memory import peak_memory_bytes
from rollout.versions import AdapterVersion
from rollout.weights import write_atomically

GRID = "grid.png"
REWARD_TAG = "reward/final_mean"


def conclude(
    config: AtelierConfig,
    actors: Actors,
    outcome: Mapping[str, Any],
    published: tuple[AdapterVersion, bytes],
    before: EvalResult,
    after: EvalResult,
    began_sec: float,
) -> tuple[str, int]:
    """Write everything into the run directory; returns the closing words and the command's exit status.

    The status is 1 where no update has reached the adapter. `began_sec` is `time.monotonic()`'s.
    """
    version, state = published
    step = outcome["counters"]["step"]
    picture = _grid(config, before, after)
    ray.get(actors.telemetry.scalars.remote(step, after.scalars()))
    ray.get(actors.telemetry.images.remote(step, {"eval/before_after": picture}))
    ray.get(actors.telemetry.hparams.remote(flatten_config(config), after.scalars()))
    best: Path | None = None
    if config.checkpoint.best is not None:
        keep_if_best(config.run.path, config.checkpoint.best, version, state, after.metrics)
        best = _export_best(config, before)
    adapter = deserialise_adapter(state)
    exported = _export(adapter, config, steps=step, before=before.metrics, after=after.metrics)
    queue = actors.queue.stats()
    summary = Summary(
        steps=step,
        wall_sec=time.monotonic() - began_sec,
        groups=GroupBooks(**{name: queue[name] for name in ("produced", "trained", "dropped", "queued")}),
        pairs_trained=queue["pairs_trained"],
        reward=reward_ends(config.run.path),
        eval=EvaluationEnds(scorer=after.scorer, before=before.metrics, after=after.metrics),
        peak_memory_bytes={
            "driver": peak_memory_bytes(),
            "learner": outcome["peak_memory_bytes"],
            "evaluator": ray.get(actors.evaluator.peak_memory_bytes.remote()),
            "rollout_worker": worker_peak_bytes(config.run.path),
        },
        adapter_sha256=version.sha256,
        without_effect=without_effect(adapter, before, after),
        data=None if isinstance(config.data, OnlineData) else _data_books(config.run.path, queue),
    )
    write_summary(config.run.path, summary)
    words = closing_text(
        config.run.path,
        summary,
        base=config.model,
        grid=config.run.path / GRID,
        checkpoints=config.run.path / "checkpoints",
        differences=differences(before, after),
        drift=after.drift,
        best=best,
        **{"model" if config.model.trainable == "full" else "lora": exported},
    )
    return words, int(changes_nothing(adapter))


def _export(adapter: Mapping[str, Tensor], config: AtelierConfig, **about: Any) -> Path:
    """As `config` trains it, an adapter or a whole network; returns the folder."""
    if config.model.trainable == "full":
        return export_model(adapter, config, **about)
    return export_lora(adapter, config, **about).folder


def _export_best(config: AtelierConfig, before: EvalResult) -> Path | None:
    """The best weights for other tools, beside those that the run kept; None where none had a finite value."""
    if (best := read_best(config.run.path)) is None:
        return None
    place = config.run.path / FOLDER
    adapter = deserialise_adapter((place / ADAPTER).read_bytes())
    measured = {best.metric: best.value}
    return _export(adapter, config, steps=best.step, before=before.metrics, after=measured, place=place)


def without_effect(adapter: Mapping[str, Tensor], before: EvalResult, after: EvalResult) -> str | None:
    """Why a run changed nothing, in words; None where its pictures changed."""
    if changes_nothing(adapter):
        return "every B of its adapter is 0, no update reached it"
    if np.array_equal(before.images, after.images):
        return f"its {len(after.images)} evaluated pictures are exactly those from before"
    return None


def _data_books(run_dir: Path, books: Mapping[str, Any]) -> DataBooksSummary:
    counts = ("epoch_rows", "rows_without_preference", "cache_hits", "cache_misses", "cache_corrupt")
    bad = [BadRowLine(**asdict(note)) for note in read_bad_rows(run_dir)]
    return DataBooksSummary(bad_rows=bad, **{name: books[name] for name in counts})


def reward_ends(run_dir: Path) -> RewardEnds:
    """Mean reward of finished rollouts in the first and in the last batch; NaN where no batch was trained."""
    rewards = [line[REWARD_TAG] for line in read_metrics(run_dir / "metrics.jsonl") if REWARD_TAG in line]
    return RewardEnds(first=rewards[0], last=rewards[-1]) if rewards else RewardEnds(first=math.nan, last=math.nan)


def worker_peak_bytes(run_dir: Path) -> int:
    """The most that any rollout worker reported during the run; 0 where the run ended before the first report."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return int(max((line[WORKER_MEMORY_TAG] for line in lines if WORKER_MEMORY_TAG in line), default=0))


def _grid(config: AtelierConfig, before: EvalResult, after: EvalResult) -> bytes:
    shown = slice(0, config.evaluation.grid_size)
    picture = before_after(before.images[shown], after.images[shown], before.prompts[shown])
    write_atomically(config.run.path / GRID, picture)
    return picture
