"""One cell: the real sampler, queue, learner loop and engine in one process, measured on its way and at its end.

learner.loop.train ─ take ─► Metered ─┬─ a mark of the budget is passed? ─► draw, describe
                                      └─► replay queue, filled as it is asked  |  data set

A run's first batch is made once beforehand, to count what a batch costs: the run has as many batches as its budget
pays for, so that its learning rate has decayed when the budget is spent.
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
from torch import Tensor

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
from tests.benchmarks.ablations.cells import PICTURES_PER_CAPTION, Cell
from tests.benchmarks.ablations.meter import Meter
from tests.benchmarks.ablations.pictures import captions, crisp_renders, describe, draw, high_energy, rounded, spectrum
from tests.learner.inprocess import Mailbox, Rollout, Telemetry, single_process_group


class Metered:
    """The learner's queue: passes calls on, and measures the adapter at the marks."""

    def __init__(self, cell: Cell, queue: Any, mailbox: Mailbox, policy: DiffusionPolicy, batches: int) -> None:
        """`policy` carries the adapter that is measured; the run ends after `batches`."""
        self._cell, self._queue, self._mailbox, self._policy = cell, queue, mailbox, policy
        self._batches = batches
        self._marks = [share * cell.budget for share in cell.marks]
        self.meter = Meter()
        self.curve: list[dict[str, Any]] = []

    def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None:
        if self._marks and self.meter.evaluations >= self._marks[0]:
            while self._marks and self.meter.evaluations >= self._marks[0]:
                self._marks.pop(0)
            shown = self._cell.shown
            with self.meter.paused():
                pictures = self._draw(shown.on_the_way * PICTURES_PER_CAPTION)
            self.curve.append({**self._spent(learner_step), **describe(pictures, shown)})
        return self._queue.take(batch, rank, world, learner_step) if batch < self._batches else None

    def finish(self, step: int) -> dict[str, Any]:
        """What the run has come to after its last update `step`; the curve gets its last point."""
        shown, spent = self._cell.shown, self._spent(step)
        pictures = self._draw(len(captions(shown)))
        if early := shown.on_the_way * PICTURES_PER_CAPTION:
            self.curve.append({**spent, **describe(pictures[:early], shown)})
        return {**spent, **describe(pictures, shown)}

    def _draw(self, count: int) -> Tensor:
        (payload,) = self._mailbox.latest_payload()
        version = self._mailbox.latest_version()
        assert version is not None, "weights are published before the first take"
        self._policy.load_adapter(deserialise_adapter(payload), version.sha256)
        return draw(self._policy, self._cell.shown, count)

    def _spent(self, step: int) -> dict[str, Any]:
        return {"evaluations": self.meter.evaluations, **self.meter.counts, "updates": step}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


def run_cell(cell: Cell, out: Path, work: Path) -> Path:
    """Train and measure `cell`; writes `out`/<slug>.json, whole or not at all. Raises whatever the loop raises.

    It takes its process for itself: DeepSpeed does not let a process group go. `work` holds what cells share.
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    started = time.time()
    measured = _train(cell, work) if cell.budget else _start(cell)
    made = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "sec": round(time.time() - started)}
    result = {
        "cell": cell.name,
        "seed": cell.seed,
        "key": cell.key(),
        "definition": cell.definition(),
        "made": {**made, "cpu_sec": round(time.process_time(), 1)},
        **measured,
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
    config, shown = cell.config("unused", None, None), cell.shown
    policy = load_policy(config.model, config.noise, "cpu", seed=cell.seed)
    pictures, renders = draw(policy, shown, len(captions(shown))), crisp_renders(shown)
    crisp, rebuilt = spectrum(renders), spectrum(rounded(policy.decode(policy.encode_images(renders))))
    none = {"evaluations": 0, "updates": 0}
    final = {**none, "crisp_spectrum": crisp.tolist(), **describe(pictures, shown)}
    final["metrics"]["detail/rebuilt"] = high_energy(rebuilt) / high_energy(crisp)
    early = pictures[: shown.on_the_way * PICTURES_PER_CAPTION]
    curve = [{**none, **describe(early, shown)}] if len(early) else []
    return {"training": {}, "curve": curve, "final": final}


def _train(cell: Cell, work: Path) -> dict[str, Any]:
    """What training was like, and what was measured on the way and at the end."""
    path = str(data_set(cell.data, cell.rows, work)) if cell.data else None
    cache = str(work / "latents") if cell.data else None
    with tempfile.TemporaryDirectory(prefix="ablation-") as folder:
        single_process_group(Path(folder))
        first, _ = _run(cell, cell.config(f"{folder}/first", path, cache), Telemetry(), batches=1)
        batches = max(1, round(cell.budget / first.meter.evaluations))
        telemetry = Telemetry()
        metered, updates = _run(cell, cell.config(f"{folder}/run", path, cache, batches), telemetry, batches)
        final = metered.finish(updates)
    return {"training": _training_summary(telemetry), "curve": metered.curve, "final": final}


def _run(cell: Cell, config: AtelierConfig, telemetry: Telemetry, batches: int) -> tuple[Metered, int]:
    """The learner's loop for so many batches; also the number of its updates."""
    config.run.path.mkdir()
    mailbox = Mailbox(config.run.path / "adapters")
    queue, policy = _source(cell, config, mailbox)
    metered = Metered(cell, queue, mailbox, policy, batches)
    with metered.meter:
        result = train(0, 1, config, metered, mailbox, telemetry, device=torch.device("cpu"))
    return metered, result.counters.step


def _source(cell: Cell, config: AtelierConfig, mailbox: Mailbox) -> tuple[Any, DiffusionPolicy]:
    """The learner's queue, and a policy to draw with."""
    if cell.data is None:
        prompts, scorer = load_prompts(config.prompts.source), build_scorer(config.rollout.scorer)
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
