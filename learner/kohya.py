"""The adapter under kohya's names, which ComfyUI, AUTOMATIC1111 and diffusers' converters read.

    sd, sdxl   lora_unet_<layer, dots as underscores>.{lora_down.weight, lora_up.weight, alpha}
    flux       the names of FLUX's original code, where q, k, v (and in single blocks the MLP's first layer) are one
               layer: the adapters of its parts become one of the sum of their ranks, with a block-diagonal up matrix

diffusers has no converter for SD3's or PixArt's kohya names, so those families have no such file: nothing could show
that it is right. Source of FLUX's names: sd-scripts' networks/lora_flux.py, read by diffusers'
`_convert_kohya_flux_lora_to_diffusers`.
Shapes: a layer's A (down) is [r, in] or [r, in, k, k], its B (up) [out, r] or [out, r, 1, 1].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from configs.model import ModelSection

KOHYA_FAMILIES = ("sd", "sdxl", "flux")
_PREFIX = "lora_unet_"
_DOUBLE = {
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp_0",
    "ff.net.2": "img_mlp_2",
    "ff_context.net.0.proj": "txt_mlp_0",
    "ff_context.net.2": "txt_mlp_2",
    "norm1.linear": "img_mod_lin",
    "norm1_context.linear": "txt_mod_lin",
}
_SINGLE = {"proj_out": "linear2", "norm.linear": "modulation_lin"}
_DOUBLE_FUSED = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_SINGLE_FUSED = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
_BLOCK = re.compile(r"^(?P<kind>transformer_blocks|single_transformer_blocks)\.(?P<number>\d+)\.(?P<part>.+)$")
_MLP_RATIO = 4
"""A single block's MLP is this many times as wide as the block (FLUX.1; diffusers' converter takes it for granted)."""


def without_kohya(layers: Sequence[str], family: str) -> str | None:
    """Why an adapter on these layers has no file under kohya's names; None where it has one."""
    if family not in KOHYA_FAMILIES:
        return f"diffusers has no converter for kohya's names of {family}"
    if family == "flux":
        strange = sorted(layer for layer in layers if _place(layer) is None)
        if strange:
            return f"diffusers' converter reads no adapter of {strange[0]} under kohya's names ({len(strange)} such)"
    return None


def kohya_state(state: Mapping[str, Tensor], model: ModelSection) -> dict[str, Tensor]:
    """The adapter of `policy.adapter_state()` under kohya's names, float32.

    Raises ValueError, with the reason, where `without_kohya` has one.
    """
    names = sorted({name.rsplit(".lora_", 1)[0] for name in state})
    if reason := without_kohya(names, model.family):
        raise ValueError(reason)
    layers = {name: (_plain(state[f"{name}.lora_A.weight"]), _plain(state[f"{name}.lora_B.weight"])) for name in names}
    scale = model.lora.scale_numerator / model.lora.rank
    named = _flux_layers(layers) if model.family == "flux" else {n.replace(".", "_"): ab for n, ab in layers.items()}
    exported: dict[str, Tensor] = {}
    for name, (down, up) in named.items():
        exported[f"{_PREFIX}{name}.lora_down.weight"] = down
        exported[f"{_PREFIX}{name}.lora_up.weight"] = up
        exported[f"{_PREFIX}{name}.alpha"] = torch.tensor(scale * len(down))
    return exported


def _flux_layers(layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Original name -> (down, up), parts of one original layer put together."""
    parts: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for layer, pair in layers.items():
        place = _place(layer)
        assert place is not None, "checked by without_kohya"
        parts.setdefault(place, {})[layer.split(".", 2)[2]] = pair
    return {place: _fused(place.rsplit("blocks_", 1)[1].split("_", 1)[1], found) for place, found in parts.items()}


def _fused(layer: str, found: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One layer's down and up from those of its parts; a part without an adapter has rows of zeros."""
    order = {**_DOUBLE_FUSED, **_SINGLE_FUSED}.get(layer)
    if order is None:
        (pair,) = found.values()
        return pair
    down = torch.cat([found[part][0] for part in order if part in found])
    width = next(up.shape[0] // (_MLP_RATIO if part == "proj_mlp" else 1) for part, (_, up) in found.items())
    heights = [_MLP_RATIO * width if part == "proj_mlp" else width for part in order]
    up = torch.zeros(sum(heights), len(down))
    row = column = 0
    for part, height in zip(order, heights, strict=True):
        if part in found:
            block = found[part][1]
            up[row : row + height, column : column + block.shape[1]] = block
            column += block.shape[1]
        row += height
    return down, up


def _place(layer: str) -> str | None:
    """The original layer, without prefix, that holds this one; None where diffusers' converter knows none."""
    match = _BLOCK.match(layer)
    if match is None:
        return None
    double = match["kind"] == "transformer_blocks"
    alone, fused = (_DOUBLE, _DOUBLE_FUSED) if double else (_SINGLE, _SINGLE_FUSED)
    name = alone.get(match["part"])
    if name is None:
        name = next((whole for whole, parts in fused.items() if match["part"] in parts), None)
    return None if name is None else f"{'double' if double else 'single'}_blocks_{match['number']}_{name}"


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()
