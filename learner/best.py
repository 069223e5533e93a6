"""The best weights so far by an evaluation metric, kept apart from the checkpoints that come and go.

run.dir/best/adapter.safetensors   the weights as they were evaluated
run.dir/best/best.json             which one it is, and its value
run.dir/best/lora/, or model/      for other tools, once the run is over (learner.results)

best.json is written last, with the adapter's checksum: one that does not fit its adapter is what a crash left behind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.learner import BestSection
from rollout.adapter import adapter_checksum, deserialise_adapter
from rollout.versions import AdapterVersion
from rollout.weights import write_atomically

FOLDER, ADAPTER, RECORD = "best", "adapter.safetensors", "best.json"


@dataclass(frozen=True)
class Best:
    """What best.json holds."""

    metric: str
    mode: str
    value: float
    step: int
    batch: int
    sha256: str


def read_best(run_dir: Path) -> Best | None:
    """The best one so far; None where there is none, or its files do not fit each other."""
    folder = run_dir / FOLDER
    try:
        best = Best(**json.loads((folder / RECORD).read_text()))
        kept = adapter_checksum(deserialise_adapter((folder / ADAPTER).read_bytes()))
    except (OSError, TypeError, ValueError):
        return None
    return best if kept == best.sha256 else None


def keep_if_best(
    run_dir: Path, settings: BestSection, version: AdapterVersion, state: bytes, metrics: Mapping[str, float]
) -> bool:
    """Keep evaluated weights when they are better than every earlier one of this run; returns whether they were.

    `state` are its safetensors bytes, `metrics` the evaluation's. One from a later step belongs to an attempt that was
    given up. Raises ValueError for a metric that the evaluation does not have, naming those that it has.
    """
    if settings.metric not in metrics:
        known = ", ".join(sorted(metrics))
        raise ValueError(f"checkpoint.best.metric = {settings.metric}: the evaluation has {known}; name one of them")
    value = metrics[settings.metric]
    former = read_best(run_dir)
    same_question = former is not None and (former.metric, former.mode) == (settings.metric, settings.mode)
    if former is not None and same_question and former.step < version.step:
        better = value > former.value if settings.mode == "max" else value < former.value
        if not better:
            return False
    if not math.isfinite(value):
        return False
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / ADAPTER, state)
    best = Best(settings.metric, settings.mode, value, version.step, version.batch, version.sha256)
    write_atomically(folder / RECORD, json.dumps(asdict(best), indent=1).encode())
    return True
