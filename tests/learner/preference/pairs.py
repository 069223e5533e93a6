"""A small folder of the miniature world's pairs: crisp is preferred, as rendered pictures (no model involved)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from configs.spm import SpmConfig
from learner.datasets.folder import write_folder
from learner.datasets.rows import PairRow
from reward.images import png_bytes
from rollout.miniature.preference_data import sample_pairs


def render_folder(folder: Path, count: int, seed: str = "pairs") -> Path:
    """Write `count` pairs whose finish decides, and return the folder."""
    pairs = sample_pairs(count, seed, kinds={"finish": 0.9, "tie": 0.1})
    rows = [
        PairRow(
            key=f"pair {n}", caption=pairs.captions[n], image_0=png_bytes(pairs.first[n]),
            image_1=png_bytes(pairs.second[n]), label_0=float(pairs.label[n]), label_1=float(1 - pairs.label[n]),
            weight=1.0, tags={"annotator": ("kim", "lee")[n % 2]},
        )
        for n in range(count)
    ]  # fmt: skip
    write_folder(folder, rows)
    return folder


def spm_config(source: Path, run_dir: Path, **sections: Any) -> SpmConfig:
    """A short run over the miniature's own pipeline and CLIP size."""
    training = {"max_steps": 2, "micro_batch_pairs": 2, "accumulation": 2, "optimizer": {"lr": 1e-3}}
    validation = {"num_pairs": 4, "every_steps": 100, "timesteps": [0, 701]}
    return SpmConfig.model_validate(
        {
            "run": {"name": "spm", "dir": str(run_dir)},
            "data": {"source": str(source), "held_out": 0.3},
            "training": {**training, **sections.pop("training", {})},
            "validation": {**validation, **sections.pop("validation", {})},
            **sections,
        }
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "spm" / "step_aware.safetensors")
