"""One cell: the real sampler, queue, learner loop and engine in one process, evaluated at shares of its budget.

learner.loop.train ─ take ─► Metered ─┬─ budget spent? ─► evaluate, close
                                      └─► replay queue, filled as it is asked  |  data set
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from configs.schema import AtelierConfig
from learner.datasets.books import DataBooks
from learner.datasets.offline import ModelEncoder, OfflineQueue
from learner.loop import train
from reward import build_scorer
from rollout.adapter import deserialise_adapter
from rollout.miniature.dataset import render_rows, write_rows
from rollout.policy import DiffusionPolicy, load_policy
from rollout.prompts import load_prompts
from rollout.weights import write_atomically
from tests.benchmarks.ablations.cells import MARKS, Cell
from tests.benchmarks.ablations.meter import Meter
from tests.benchmarks.ablations.pictures import crisp_renders, high_energy, measure, spectrum
from tests.learner.inprocess import Mailbox, Rollout, Telemetry, single_process_group


class Metered:
    """The learner's queue: passes calls on, evaluates at the marks, and ends the run once the budget is spent."""

    def __init__(self, cell: Cell, queue: Any, mailbox: Mailbox, policy: DiffusionPolicy, scorer: Any) -> None:
        """`policy` carries the adapter that is evaluated, `scorer` is the reward in use."""
        self._cell, self._queue, self._mailbox = cell, queue, mailbox
        self._policy, self._scorer = policy, scorer
        self._marks = [share * cell.budget for share in MARKS]
        self.meter = Meter()
        self.points: list[dict[str, Any]] = []

    def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None:
        if self._marks and self.meter.evaluations >= self._marks[0]:
            while self._marks and self.meter.evaluations >= self._marks[0]:
                self._marks.pop(0)
            self._evaluate(learner_step)
        return self._queue.take(batch, rank, world, learner_step) if self._marks else None

    def _evaluate(self, step: int) -> None:
        (payload,) = self._mailbox.latest_payload()
        version = self._mailbox.latest_version()
        assert version is not None and version.step == step, "the newest weights are in the mailbox"
        self._policy.load_adapter(deserialise_adapter(payload), version.sha256)
        with self.meter.paused():
            found = measure(self._policy, self._scorer, self._cell.prompts)
        spent = {"evaluations": self.meter.evaluations, **self.meter.counts, "updates": step}
        self.points.append({**spent, "cpu_sec": round(time.process_time(), 1), **found})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


def run_cell(cell: Cell, out: Path, work: Path) -> Path:
    """Train and measure `cell`; writes `out`/<slug>.json, whole or not at all. Raises whatever the loop raises.

    It takes its process for itself: DeepSpeed does not let a process group go. `work` holds what cells share.
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    started = time.time()
    training, points = _train(cell, work) if cell.budget else ({}, [_start(cell)])
    result = {
        "cell": cell.name,
        "seed": cell.seed,
        "key": cell.key(),
        "definition": cell.definition(),
        "made": {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "sec": round(time.time() - started)},
        "training": training,
        "points": points,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{cell.slug}.json"
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def data_set(kind: str, rows: int, work: Path) -> Path:
    """Rendered rows of this kind, made once below `work`: what `data.path` is to be."""
    folder = work / f"{kind}-{rows}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_rows(render_rows(kind, rows), partial, "parquet")  # type: ignore[arg-type]
        partial.rename(folder)
    return folder / "rows.parquet"


def _start(cell: Cell) -> dict[str, Any]:
    """The untrained model, where every curve starts, and what its autoencoder makes of crisp renders."""
    config = cell.config("unused", None, None)
    policy = load_policy(config.model, config.noise, "cpu", seed=cell.seed)
    found = measure(policy, build_scorer(config.rollout.scorer), cell.prompts)
    renders = crisp_renders(cell.prompts)
    crisp, rebuilt = spectrum(renders), spectrum(policy.decode(policy.encode_images(renders)))
    found["metrics"]["detail/rebuilt"] = high_energy(rebuilt) / high_energy(crisp)
    return {"evaluations": 0, "updates": 0, "crisp_spectrum": crisp.tolist(), **found}


def _train(cell: Cell, work: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What training was like, and what was measured at the marks."""
    path = str(data_set(cell.data, cell.rows, work)) if cell.data else None
    telemetry = Telemetry()
    with tempfile.TemporaryDirectory(prefix="ablation-") as folder:
        single_process_group(Path(folder))
        config = cell.config(f"{folder}/run", path, str(work / "latents") if cell.data else None)
        config.run.path.mkdir()
        mailbox = Mailbox(config.run.path / "adapters")
        scorer = build_scorer(config.rollout.scorer)
        queue, policy = _source(cell, config, mailbox, scorer)
        metered = Metered(cell, queue, mailbox, policy, scorer)
        with metered.meter:
            train(0, 1, config, metered, mailbox, telemetry, device=torch.device("cpu"))
    return _training_summary(telemetry), metered.points


def _source(cell: Cell, config: AtelierConfig, mailbox: Mailbox, scorer: Any) -> tuple[Any, DiffusionPolicy]:
    """The learner's queue, and a policy to evaluate with."""
    if cell.data is None:
        prompts = load_prompts(config.prompts.source)
        rollout = Rollout(config, mailbox, prompts=prompts, scorer_from=lambda *_: scorer)
        return rollout, rollout.policy
    books = DataBooks(config.run.path, config.learner.groups_per_batch)
    policy = load_policy(config.model, config.noise, "cpu", seed=config.run.seed)
    return OfflineQueue(config, books, ModelEncoder(config, torch.device("cpu"))), policy


def _training_summary(telemetry: Telemetry) -> dict[str, float]:
    """Means over the run's updates of what the loop reported, and what was trained in all."""
    lines = list(telemetry.lines.values())
    found = {"pairs": sum(line.get("pairs/trained", 0.0) for line in lines)}
    for tag in ("loss/total", "loss/grad_norm", "ratio/clamped_share", "pairs/kept_share"):
        values = [line[tag] for line in lines if tag in line]
        if values:
            found[tag] = float(f"{sum(values) / len(values):.4g}")
    return found
