"""A network that was trained whole, as a complete pipeline in diffusers' layout, with a card.

    run.dir/model/                            DiffusionPipeline.from_pretrained("run.dir/model"), and
                                              python -m rollout.evaluate --base run.dir/model
    run.dir/model/<unet or transformer>/      the trained weights
    run.dir/model/README.md                   model card (learner/model_card.py)

The other parts are the base's (`model.vae` and `model.t5` as configured), float32 too: transformers reads the dtype in
which weights are stored, so that a pipeline of several dtypes would not run as it is. No safety checker is among them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from configs.schema import AtelierConfig
from learner.export import check_trained
from learner.model_card import model_card
from rollout.adapter import adapter_checksum
from rollout.assets import pipeline_path
from rollout.families import FAMILIES

MODEL_FOLDER = "model"


def export_model(
    state: Mapping[str, Tensor],
    config: AtelierConfig,
    *,
    steps: int,
    before: Mapping[str, float],
    after: Mapping[str, float],
    place: Path | None = None,
) -> Path:
    """Write the pipeline with the weights of `policy.adapter_state()`; returns its folder, which appears whole or not.

    `steps` optimiser steps made it; `before` and `after` are its evaluation, for the card. `place`: the folder that
    gets `model/`, in place of the run's directory.
    Raises ValueError, before anything is written, naming what is missing, surplus, misshapen or not finite.
    """
    check_trained(state, config.model)
    folder = (place or config.run.path) / MODEL_FOLDER
    partial = folder.with_name(MODEL_FOLDER + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    path = pipeline_path(config.model.pretrained)
    family = FAMILIES[config.model.family].load(path, torch.float32, network_only=False, model=config.model)
    with torch.no_grad():
        for name, parameter in family.network.named_parameters():
            parameter.copy_(state[name])
    family.pipeline.save_pretrained(partial)
    card = model_card(
        config,
        adapter_sha256=adapter_checksum(state),
        steps=steps,
        before=before,
        after=after,
        without_kohya="those name the layers of an adapter",
    )
    (partial / "README.md").write_text(card)
    _settle(partial, folder)
    return folder


def _settle(partial: Path, folder: Path) -> None:
    """Onto the disk, for everyone who may read the card too, then in the place of a former export."""
    permissions = (partial / "README.md").stat().st_mode
    for file in (path for path in partial.rglob("*") if path.is_file()):
        file.chmod(permissions)
        with file.open("rb") as written:
            os.fsync(written.fileno())
    former = folder.with_name(folder.name + ".former")
    if folder.exists():
        folder.replace(former)
    partial.replace(folder)
    shutil.rmtree(former, ignore_errors=True)
