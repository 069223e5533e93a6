"""The trained adapter as files that other tools load: diffusers and kohya (ComfyUI, AUTOMATIC1111) LoRA, with a card.

    run.dir/lora/pytorch_lora_weights.safetensors    pipeline.load_lora_weights("run.dir/lora")
    run.dir/lora/kohya/<run name>.safetensors        sd, sdxl, flux: the same weights under kohya's names (kohya.py)
    run.dir/lora/peft/                               pixart: PeftModel.from_pretrained(pipeline.transformer, ..)
    run.dir/lora/README.md                           model card (learner/model_card.py)

diffusers has no LoRA loader for PixArt's pipelines, so peft's own format goes with it. Where there is no file under
kohya's names the reason is logged and stands in the card.

The adapter adds (alpha / rank) · B·A to a layer. Kohya's format carries alpha. The diffusers format carries it as
metadata that older versions and other programs ignore, so there alpha / rank is multiplied into B: every reader then
arrives at the same scale.
Shapes: a layer's A is [rank, in] and B [out, rank]; for a convolution [rank, in, k, k] and [out, rank, 1, 1].
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from safetensors.torch import save
from torch import Tensor

from configs.model import ModelSection
from configs.schema import AtelierConfig
from learner.kohya import kohya_state, without_kohya
from learner.model_card import model_card
from rollout.adapter import adapter_checksum, changes_nothing
from rollout.assets import configuration_place
from rollout.trainable import inject_lora
from rollout.weights import write_atomically

logger = logging.getLogger(__name__)
_NETWORKS = {
    "sd": (UNet2DConditionModel, "unet"),
    "sdxl": (UNet2DConditionModel, "unet"),
    "pixart": (PixArtTransformer2DModel, "transformer"),
    "sd3": (SD3Transformer2DModel, "transformer"),
    "flux": (FluxTransformer2DModel, "transformer"),
}
"""Family -> the network's class and its folder in the pipeline, which is also its prefix in a diffusers LoRA."""


@dataclass(frozen=True)
class ExportedLora:
    """Where the files are."""

    folder: Path
    diffusers: Path
    kohya: Path | None
    """None where family or layers have no such file: `learner.kohya.without_kohya` says why."""
    peft: Path | None
    """Folder; None where `diffusers` is enough."""
    card: Path


def export_lora(
    state: Mapping[str, Tensor],
    config: AtelierConfig,
    *,
    steps: int,
    before: Mapping[str, float],
    after: Mapping[str, float],
    place: Path | None = None,
) -> ExportedLora:
    """Write the adapter of `policy.adapter_state()` in every form that its family has, and the card.

    Each file appears whole or not at all.

    `steps` optimiser steps made it; `before` and `after` are its evaluation, for the card. `place`: the folder that
    gets `lora/`, in place of the run's directory.
    Raises ValueError, before anything is written, naming what is missing, surplus, misshapen or not finite.
    """
    check_trained(state, config.model)
    folder = (place or config.run.path) / "lora"
    if reason := without_kohya(sorted({name.rsplit(".lora_", 1)[0] for name in state}), config.model.family):
        logger.warning("no LoRA file under kohya's names: %s", reason)
    files = ExportedLora(
        folder=folder,
        diffusers=folder / "pytorch_lora_weights.safetensors",
        kohya=folder / "kohya" / f"{config.run.name}.safetensors" if reason is None else None,
        peft=folder / "peft" if config.model.family == "pixart" else None,
        card=folder / "README.md",
    )
    checksum = adapter_checksum(state)
    card = model_card(config, adapter_sha256=checksum, steps=steps, before=before, after=after, without_kohya=reason)
    common = {"atelier_run": config.run.name, "atelier_base_model": config.model.pretrained}
    _write(files.diffusers, save(diffusers_state(state, config.model), {"format": "pt", **common}))
    if files.kohya is not None:
        _write(files.kohya, _kohya_bytes(state, config, common))
    if files.peft is not None:
        _write(files.peft / "adapter_model.safetensors", save(peft_state(state), {"format": "pt", **common}))
        _write(files.peft / "adapter_config.json", json.dumps(_peft_config(config.model), indent=1).encode())
    _write(files.card, card.encode())
    return files


def _kohya_bytes(state: Mapping[str, Tensor], config: AtelierConfig, common: Mapping[str, str]) -> bytes:
    lora = config.model.lora
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.scale_numerator),
        "ss_output_name": config.run.name,
    }
    return save(kohya_state(state, config.model), {"format": "pt", **metadata, **common})


def check_trained(state: Mapping[str, Tensor], model: ModelSection) -> None:
    """Raises ValueError unless `state` has exactly the tensors that `model` trains, in their shapes and finite."""
    expected = trained_shapes(model)
    full = model.trainable == "full"
    what = "network" if full else "adapter"
    needs = model.pretrained if full else f"{model.pretrained} at rank {model.lora.rank}"
    for kind, names in (("missing", expected.keys() - state.keys()), ("surplus", state.keys() - expected.keys())):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise ValueError(f"{what} of {model.pretrained}: {len(names)} of {len(expected)} tensors {kind}: {first}")
    for name, shape in sorted(expected.items()):
        if tuple(state[name].shape) != shape:
            raise ValueError(
                f"{what} tensor {name} has shape {tuple(state[name].shape)}; {needs} needs {shape}. What is sharded "
                f"must be gathered first"
            )
        if not bool(torch.isfinite(state[name]).all()):
            raise ValueError(f"{what} tensor {name} has non-finite values; export an earlier checkpoint")
    if changes_nothing(state):
        logger.warning(
            "the adapter of %s changes nothing: all of its B are 0; no update has reached it", model.pretrained
        )


def trained_shapes(model: ModelSection) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that is trained on this model, from its configuration alone (no weights)."""
    network_class, folder = _NETWORKS[model.family]
    with torch.device("meta"):
        network = network_class.from_config(network_class.load_config(configuration_place(model), subfolder=folder))
        if model.trainable == "lora":
            inject_lora(network, model.lora)
    return {
        name.replace(".default.", "."): tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        if model.trainable == "full" or ".lora_" in name
    }


def diffusers_state(state: Mapping[str, Tensor], model: ModelSection) -> dict[str, Tensor]:
    """diffusers' names (`unet.<layer>.lora_A.weight`), float32, with alpha / rank inside B."""
    prefix = _NETWORKS[model.family][1]
    scale = model.lora.scale_numerator / model.lora.rank
    return {
        f"{prefix}.{name}": _plain(tensor) * scale if ".lora_B." in name else _plain(tensor)
        for name, tensor in state.items()
    }


def peft_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """peft's names (`base_model.model.<layer>.lora_A.weight`), float32; alpha is in its adapter_config.json."""
    return {f"base_model.model.{name}": _plain(tensor) for name, tensor in state.items()}


def _peft_config(model: ModelSection) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": model.pretrained,
        "r": model.lora.rank,
        "lora_alpha": model.lora.scale_numerator,
        "target_modules": list(model.lora.target_modules),
        "inference_mode": True,
    }


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
