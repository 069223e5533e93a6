"""The trained adapter as files that other tools load: diffusers and kohya (ComfyUI, AUTOMATIC1111) LoRA, with a card.

    run.dir/lora/pytorch_lora_weights.safetensors    StableDiffusionPipeline.load_lora_weights("run.dir/lora")
    run.dir/lora/kohya/<run name>.safetensors        the same weights under kohya's names, with their alpha
    run.dir/lora/README.md                           model card (learner/model_card.py)

The adapter adds (alpha / rank) · B·A to a layer. Kohya's format carries alpha. The diffusers format carries it as
metadata that older versions and other programs ignore, so there alpha / rank is multiplied into B: every reader then
arrives at the same scale.
Shapes: a layer's A is [rank, in] and B [out, rank]; for a convolution [rank, in, k, k] and [out, rank, 1, 1].
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor

from configs.model import ModelSection
from configs.schema import AtelierConfig
from learner.model_card import model_card
from rollout.adapter import adapter_checksum
from rollout.assets import pipeline_path

_NETWORKS = {"sd": (UNet2DConditionModel, "unet")}
"""Family -> the network's class and its folder in the pipeline, which is also its prefix in a diffusers LoRA."""
_KOHYA_PREFIX = {"sd": "lora_unet_"}


@dataclass(frozen=True)
class ExportedLora:
    """Where the files are."""

    folder: Path
    diffusers: Path
    kohya: Path
    card: Path


def export_lora(
    state: Mapping[str, Tensor],
    config: AtelierConfig,
    *,
    steps: int,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> ExportedLora:
    """Write the adapter of `policy.adapter_state()` in both forms, and the card; each file appears whole or not at all.

    `steps` optimiser steps made it; `before` and `after` are its evaluation, for the card.
    Raises ValueError, before anything is written, naming what is missing, surplus, misshapen or not finite.
    """
    check_adapter(state, config.model)
    folder = config.run.path / "lora"
    files = ExportedLora(
        folder=folder,
        diffusers=folder / "pytorch_lora_weights.safetensors",
        kohya=folder / "kohya" / f"{config.run.name}.safetensors",
        card=folder / "README.md",
    )
    card = model_card(config, adapter_sha256=adapter_checksum(state), steps=steps, before=before, after=after)
    lora = config.model.lora
    common = {"atelier_run": config.run.name, "atelier_base_model": config.model.pretrained}
    _write(files.diffusers, save(diffusers_state(state, config.model), {"format": "pt", **common}))
    kohya_metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.scale_numerator),
        "ss_output_name": config.run.name,
    }
    _write(files.kohya, save(kohya_state(state, config.model), {"format": "pt", **kohya_metadata, **common}))
    _write(files.card, card.encode())
    return files


def check_adapter(state: Mapping[str, Tensor], model: ModelSection) -> None:
    """Raises ValueError unless `state` has exactly the tensors that `model` trains, in their shapes and finite."""
    expected = adapter_shapes(model)
    for kind, names in (("missing", expected.keys() - state.keys()), ("surplus", state.keys() - expected.keys())):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise ValueError(f"adapter of {model.pretrained}: {len(names)} of {len(expected)} tensors {kind}: {first}")
    for name, shape in sorted(expected.items()):
        if tuple(state[name].shape) != shape:
            raise ValueError(
                f"adapter tensor {name} has shape {tuple(state[name].shape)}; {model.pretrained} at rank "
                f"{model.lora.rank} needs {shape}. A sharded adapter must be gathered first"
            )
        if not bool(torch.isfinite(state[name]).all()):
            raise ValueError(f"adapter tensor {name} has non-finite values; export an earlier checkpoint")


def adapter_shapes(model: ModelSection) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the adapter has on this model, from its configuration alone (no weights)."""
    network_class, folder = _NETWORKS[model.family]
    with torch.device("meta"):
        network = network_class.from_config(
            network_class.load_config(pipeline_path(model.pretrained), subfolder=folder)
        )
        network.add_adapter(LoraConfig(r=model.lora.rank, target_modules=list(model.lora.target_modules)))
    return {
        name.replace(".default.", "."): tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        if ".lora_" in name
    }


def diffusers_state(state: Mapping[str, Tensor], model: ModelSection) -> dict[str, Tensor]:
    """diffusers' names (`unet.<layer>.lora_A.weight`), float32, with alpha / rank inside B."""
    prefix = _NETWORKS[model.family][1]
    scale = model.lora.scale_numerator / model.lora.rank
    return {
        f"{prefix}.{name}": _plain(tensor) * scale if ".lora_B." in name else _plain(tensor)
        for name, tensor in state.items()
    }


def kohya_state(state: Mapping[str, Tensor], model: ModelSection) -> dict[str, Tensor]:
    """kohya's names (`lora_unet_<layer>.lora_down.weight`, `.lora_up.weight`, `.alpha`), float32."""
    exported: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, half = name.rsplit(".lora_", 1)
        key = _KOHYA_PREFIX[model.family] + layer.replace(".", "_")
        exported[f"{key}.lora_{'down' if half.startswith('A') else 'up'}.weight"] = _plain(tensor)
        exported[f"{key}.alpha"] = torch.tensor(model.lora.scale_numerator)
    return exported


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _write(path: Path, data: bytes) -> None:
    """tmp + fsync + rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + ".tmp")
    with tmp.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)
