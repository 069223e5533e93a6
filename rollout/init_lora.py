"""Starting from the LoRA that another run exported: `sft -> spo`, `spo -> pixel-simpo` as consecutive runs.

    adapter   the adapter starts with the LoRA's weights: the reference stays the original base, and what this run
              exports is the whole change
    merged    the LoRA is added to the base, the adapter starts at nothing: the reference is where the last run ended,
              and what this run exports comes on top of that LoRA (contains it, where the whole network is trained)

An exported LoRA carries alpha / rank inside B (learner/export.py). Shapes: a layer's A is [r, in] or [r, in, k, k], its
B [out, r] or [out, r, 1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.model import ModelSection
from rollout.adapter import changes_nothing

FILE_NAME = "pytorch_lora_weights.safetensors"
_PREFIXES = ("unet.", "transformer.")


def start_from_lora(network: Any, adapter: Mapping[str, nn.Parameter], model: ModelSection) -> None:
    """Put the LoRA at `model.init_lora` into `adapter` (name -> parameter), or into the base layers of `network`.

    The path is a .safetensors file, a folder with one, or a run directory; without one nothing happens.
    Raises ValueError for a file that is missing, damaged, or made for other layers (or, unmerged, another rank).
    """
    if model.init_lora is None:
        return
    path = model.init_lora
    state = read_lora(path)
    if model.init_lora_mode == "merged":
        _merge(network, state, path)
        return
    check_fits(state, {name: tuple(parameter.shape) for name, parameter in adapter.items()}, path)
    scale = model.lora.scale_numerator / model.lora.rank
    with torch.no_grad():
        for name, parameter in adapter.items():
            parameter.copy_(state[name] / scale if ".lora_B." in name else state[name])


def check_init_lora(model: ModelSection, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError, before anything is loaded, when `model.init_lora` cannot start an adapter of these shapes."""
    if model.init_lora is None:
        return
    state = read_lora(model.init_lora)
    if model.init_lora_mode == "adapter":
        check_fits(state, shapes, model.init_lora)


def check_fits(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: str) -> None:
    """Raise ValueError, with the fix, unless `state` has exactly the tensors of an adapter of these shapes."""
    if differing := sorted(shapes.keys() ^ state.keys()):
        raise ValueError(
            f"model.init_lora = {path}: {len(differing)} tensors differ from this adapter's, first {differing[:3]}. "
            f"Set model.lora.target_modules as in the run that exported it, or model.init_lora_mode to merged"
        )
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(
                f"model.init_lora = {path}: {name} has shape {tuple(state[name].shape)}, this adapter needs "
                f"{shape}. Set model.lora.rank as in the run that exported it, or "
                f"model.init_lora_mode to merged"
            )


def read_lora(path: str) -> dict[str, Tensor]:
    """float32 tensors of an exported diffusers LoRA, by the adapter's own names (`<layer>.lora_A.weight`)."""
    file = _file(Path(path).expanduser())
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model.init_lora = {path}: {file} cannot be read as safetensors: {error}") from error
    state = {}
    for name, tensor in tensors.items():
        prefix = next((p for p in _PREFIXES if name.startswith(p)), None)
        if prefix is None or not name.endswith((".lora_A.weight", ".lora_B.weight")):
            raise ValueError(f"model.init_lora = {path}: {name} is not a tensor of a LoRA in diffusers' format")
        state[name.removeprefix(prefix)] = tensor.float()
    if bad := sorted(name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())):
        raise ValueError(f"model.init_lora = {path}: {bad[0]} has non-finite values; export an earlier checkpoint")
    if changes_nothing(state):
        raise ValueError(
            f"model.init_lora = {path}: {file} changes nothing: every lora_B in it is zero. No update reached it when "
            "it was trained; take another run's LoRA, or leave model.init_lora out"
        )
    return state


def _file(path: Path) -> Path:
    places = [path, path / FILE_NAME, path / "lora" / FILE_NAME]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(
            f"model.init_lora = {path}: no LoRA there. Name {FILE_NAME}, its folder, or the directory of a run that "
            f"has finished"
        )
    return found


def _merge(network: Any, state: Mapping[str, Tensor], path: str) -> None:
    """W + B A into every layer that the LoRA names, computed in float32."""
    modules = dict(network.named_modules())
    for name in sorted(name for name in state if ".lora_A." in name):
        layer = name.removesuffix(".lora_A.weight")
        module = modules.get(layer)
        base = getattr(module, "base_layer", module)
        if base is None or f"{layer}.lora_B.weight" not in state:
            raise ValueError(f"model.init_lora = {path}: this model has no layer {layer}, or its lora_B is missing")
        down, up = state[name], state[f"{layer}.lora_B.weight"]
        change = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
        if change.shape != base.weight.shape:
            raise ValueError(
                f"model.init_lora = {path}: {layer} has shape {tuple(change.shape)} there and "
                f"{tuple(base.weight.shape)} in this model"
            )
        with torch.no_grad():
            base.weight.copy_(base.weight.float() + change.to(base.weight.device))
