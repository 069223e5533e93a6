"""A cell: one training run, told apart by its settings.

A cell's key is a hash of its settings, of how it is evaluated, of the network's weights, and where it rolls out, of the
preference model's (SPM): a finished cell is run again only when one of these has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from configs.load import load_config
from configs.schema import AtelierConfig
from reward import MINIATURE as SPM
from reward.step_aware import WEIGHTS
from reward.weights_file import weights_version
from rollout.assets import MINIATURE_PIPELINE

BUDGET = 5000
"""Evaluations of a network (see `meter.Meter`) that a cell spends on rolling out and learning."""
MARKS = (0.25, 0.5)
"""Shares of the budget at which a method is measured on the way; every cell is measured at its end."""
PICTURES_PER_CAPTION = 2
ROWS = 1024
"""Of each rendered data set."""
VERSION = 4
"""Of what a result holds; a change of it makes every cell run again."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """Held-out captions, and seeds of the noise, that a cell draws its pictures of: the same for all that compare."""

    captions: int = 64
    first_caption: int = 0
    first_seed: int = 20_000
    on_the_way: int = 24
    """The first so many captions make the points of the learning curves."""


FOR_RATES = Shown(captions=32, first_caption=128, first_seed=30_000, on_the_way=0)
"""What rates are chosen by: no caption and no seed of `Shown()`."""


@dataclass(frozen=True)
class Cell:
    """One training run. `settings` are laid over `base_settings`; `data` names the rendered set it reads, if any."""

    name: str
    settings: Settings = field(hash=False)
    data: str | None = None
    seed: int = 0
    budget: int = BUDGET
    marks: tuple[float, ...] = ()
    shown: Shown = Shown()
    rows: int = ROWS

    @property
    def slug(self) -> str:
        """File name, without its ending."""
        return f"{self.name}-seed{self.seed}"

    def definition(self) -> Settings:
        """Everything that the cell's result depends on, as plain values."""
        return {
            "version": VERSION,
            "settings": merged(base_settings(), self.settings),
            "data": None if self.data is None else {"kind": self.data, "rows": self.rows},
            "seed": self.seed,
            "budget": self.budget,
            "marks": list(self.marks),
            "evaluation": {**asdict(self.shown), "pictures_per_caption": PICTURES_PER_CAPTION},
            "weights": weights(scored=self.budget > 0 and self.data is None),
        }

    def key(self) -> str:
        """16 hex digits of the definition's SHA-256."""
        return hashlib.sha256(json.dumps(self.definition(), sort_keys=True).encode()).hexdigest()[:16]

    def config(
        self, run_dir: str, data_path: str | None, latent_cache: str | None, batches: int = 1_000_000
    ) -> AtelierConfig:
        """The run's configuration; its learning rate has decayed after `batches`.

        Raises pydantic's ValidationError for settings that contradict each other.
        """
        values = merged(merged(base_settings(), self.settings), {"learner": {"max_batches": batches}})
        values["run"] = {"name": self.slug, "dir": run_dir, "seed": self.seed}
        if self.data is not None:
            values["data"] = {"type": self.data, "path": data_path, "latent_cache": latent_cache}
        return AtelierConfig.model_validate(values)


@cache
def weights(scored: bool) -> dict[str, str]:
    """Checksum of the network that is trained and, where pictures are scored, of `SPM`."""
    network = {"network": weights_version(*sorted(MINIATURE_PIPELINE.rglob("*.safetensors")))}
    return network | ({"preference_model": weights_version(SPM / WEIGHTS)} if scored else {})


@cache
def _quickstart_model() -> str:
    """Without defaults: a field that the schema gets later is no reason to run a cell again."""
    return load_config("quickstart").model.model_dump_json(exclude_defaults=True)


def base_settings() -> Settings:
    """What all cells share: the quickstart's network and adapter, half its denoising steps, its decay, sync."""
    return {
        "model": json.loads(_quickstart_model()),
        "noise": {"num_steps": 10},
        "schedule": {"type": "sync"},
        "rollout": {"workers": {"max_batch": 32, "chunk_groups": 1}},
        "learner": {
            "groups_per_batch": 4,
            "micro_batch_pairs": 16,
            "optimizer": {"decay": "cosine", "warmup_steps": 4},
        },
        "checkpoint": {"every_batches": 1_000_000},
    }


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    """`above` laid over `below`; a section that names another `type` replaces the one below."""
    result = dict(below)
    for name, value in above.items():
        under = result.get(name)
        same = isinstance(under, Mapping) and isinstance(value, Mapping) and value.get("type") == under.get("type")
        both = isinstance(under, Mapping) and isinstance(value, Mapping) and "type" not in value
        result[name] = merged(under, value) if same or both else value
    return result


START = Cell("start", {}, budget=0)
"""The untrained model."""
