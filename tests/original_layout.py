"""A diffusers pipeline as one file in its authors' own layout: the inverse of what diffusers converts, for tests.

Names follow CompVis' latent diffusion (U-Net `model.diffusion_model`, autoencoder `first_stage_model`), OpenCLIP,
Stability's SD3 (`joint_blocks`) and Black Forest Labs' FLUX (`double_blocks`, `single_blocks`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_single_file(family: str, folder: Path, file: Path, change: Callable[[State], object] | None = None) -> Path:
    """Write the pipeline in `folder` to `file`; `change` may spoil the tensors first."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype="auto")
    state = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[family](pipeline)
    if change is not None:
        change(state)
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, file, metadata={"format": "pt"})
    return file


def _sd(pipeline) -> State:
    """SD 1.x: CLIP in HF's names. SD 2.x (a text encoder of OpenCLIP's kind, GELU): OpenCLIP's, one more block."""
    state = {**_prefixed(UNET, _unet(pipeline.unet)), **_prefixed(VAE, _vae(pipeline.vae))}
    text = pipeline.text_encoder
    if text.config.hidden_act == "gelu":
        prefix = "cond_stage_model.model."
        unread = {f"transformer.resblocks.{text.config.num_hidden_layers}.ln_1.weight": torch.ones(4)}
        extra = {**unread, "text_projection": torch.ones([text.config.hidden_size] * 2), "logit_scale": torch.ones(())}
        state |= _prefixed(prefix, {**_open_clip(text), **extra})
    else:
        state |= _prefixed("cond_stage_model.transformer.", _hf_text(text))
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(4)[None]
    return {**state, "alphas_cumprod": torch.ones(1000), "sqrt_one_minus_alphas_cumprod": torch.ones(1000)}


def _sdxl(pipeline) -> State:
    second = {**_open_clip(pipeline.text_encoder_2), "logit_scale": torch.ones(())}
    return {
        **_prefixed(UNET, _unet(pipeline.unet)), **_prefixed(VAE, _vae(pipeline.vae)),
        **_prefixed("conditioner.embedders.0.transformer.", _hf_text(pipeline.text_encoder)),
        **_prefixed("conditioner.embedders.1.model.", second),
    }  # fmt: skip


def _sd3(pipeline) -> State:
    return {
        **_prefixed(UNET, _mmdit(pipeline.transformer)), **_prefixed(VAE, _vae(pipeline.vae)),
        **_prefixed("text_encoders.clip_l.transformer.", _hf_text(pipeline.text_encoder)),
        **_prefixed("text_encoders.clip_g.transformer.", _hf_text(pipeline.text_encoder_2)),
        **_prefixed("text_encoders.t5xxl.transformer.", pipeline.text_encoder_3.state_dict()),
    }  # fmt: skip


def _flux(pipeline) -> State:
    """The network alone, as it is released."""
    state = pipeline.transformer.state_dict()
    out: State = {}
    ends = {
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer", "x_embedder": "img_in",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer", "context_embedder": "txt_in",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer", "proj_out": "final_layer.linear",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    }  # fmt: skip
    double = {
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
        "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
    }  # fmt: skip
    single = {
        "norm.linear": "modulation.lin", "proj_out": "linear2", "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
    }  # fmt: skip
    for name, tensor in state.items():
        module, kind = name.rsplit(".", 1)
        block = re.match(r"(single_)?transformer_blocks\.(\d+)\.(.+)$", module)
        if module in ends:
            out[f"{ends[module]}.{kind}"] = tensor
        elif module == "norm_out.linear":
            out[f"final_layer.adaLN_modulation.1.{kind}"] = _swapped(tensor)
        elif block and (new := (single if block[1] else double).get(block[3])):
            ending = "scale" if "norm." in new else kind
            out[f"{'single' if block[1] else 'double'}_blocks.{block[2]}.{new}.{ending}"] = tensor
    for number in range(len(pipeline.transformer.transformer_blocks)):
        attention = f"transformer_blocks.{number}.attn."
        for kind in ("weight", "bias"):
            place = f"double_blocks.{number}"
            out[f"{place}.img_attn.qkv.{kind}"] = _joined(state, attention, ("to_q", "to_k", "to_v"), kind)
            context = ("add_q_proj", "add_k_proj", "add_v_proj")
            out[f"{place}.txt_attn.qkv.{kind}"] = _joined(state, attention, context, kind)
    for number in range(len(pipeline.transformer.single_transformer_blocks)):
        fused = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        for kind in ("weight", "bias"):
            name = f"single_blocks.{number}.linear1.{kind}"
            out[name] = _joined(state, f"single_transformer_blocks.{number}.", fused, kind)
    return out


def _mmdit(transformer) -> State:
    state, out, last = transformer.state_dict(), {}, len(transformer.transformer_blocks) - 1
    ends = {
        "pos_embed.proj": "x_embedder.proj", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2", "context_embedder": "context_embedder",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0", "proj_out": "final_layer.linear",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    }  # fmt: skip
    inner = {
        "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
        "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
        "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    }  # fmt: skip
    for name, tensor in state.items():
        module, kind = name.rsplit(".", 1)
        block = re.match(r"transformer_blocks\.(\d+)\.(.+)$", module)
        if name == "pos_embed.pos_embed":
            out["pos_embed"] = tensor
        elif module in ends:
            out[f"{ends[module]}.{kind}"] = tensor
        elif module == "norm_out.linear":
            out[f"final_layer.adaLN_modulation.1.{kind}"] = _swapped(tensor)
        elif block and block[2] in inner:
            swap = int(block[1]) == last and block[2] == "norm1_context.linear"
            out[f"joint_blocks.{block[1]}.{inner[block[2]]}.{kind}"] = _swapped(tensor) if swap else tensor
    for number in range(last + 1):
        for kind in ("weight", "bias"):
            for side, parts in (
                ("x", ("to_q", "to_k", "to_v")),
                ("context", ("add_q_proj", "add_k_proj", "add_v_proj")),
            ):
                joined = _joined(state, f"transformer_blocks.{number}.attn.", parts, kind)
                out[f"joint_blocks.{number}.{side}_block.attn.qkv.{kind}"] = joined
    return out


def _unet(unet) -> State:
    """Blocks are counted through: every block has its layers and, but for the last, a change of size."""
    layers = unet.config.layers_per_block
    attending = [block.startswith("CrossAttn") for block in unet.config.up_block_types]
    out: State = {}
    for name, tensor in unet.state_dict().items():
        module, kind = name.rsplit(".", 1)
        if module in _UNET_ENDS:
            out[f"{_UNET_ENDS[module]}.{kind}"] = tensor
            continue
        match = re.match(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.?(.*)$", module)
        assert match is not None, name
        side, block, part, number = match[1], int(match[2] or 0), match[3], int(match[4])
        if side == "mid":
            place = f"middle_block.{2 * number if part == 'resnets' else 1}"
        elif side == "down":
            at = 1 + block * (layers + 1) + (layers if part == "downsamplers" else number)
            place = f"input_blocks.{at}.{1 if part == 'attentions' else 0}"
        else:
            at = block * (layers + 1) + (layers if part == "upsamplers" else number)
            place = f"output_blocks.{at}.{ {'resnets': 0, 'attentions': 1}.get(part, 1 + attending[block]) }"
        inner = {"resnets": _RESNET.get(match[5], match[5]), "downsamplers": "op"}.get(part, match[5])
        out[f"{place}.{inner}.{kind}"] = tensor
    return out


def _vae(vae) -> State:
    blocks = len(vae.config.block_out_channels)
    out: State = {}
    for name, tensor in vae.state_dict().items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if attention := re.match(r"(.*)mid_block\.attentions\.0\.(.+)\.(\w+)$", new):
            new = f"{attention[1]}mid.attn_1.{_VAE_ATTENTION[attention[2]]}.{attention[3]}"
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        out[new] = tensor
    return out


def _hf_text(text) -> State:
    """HF's CLIP names, whether or not this version of transformers keeps the `text_model.` in memory."""
    return {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": tensor
        for name, tensor in text.state_dict().items()
    }


def _open_clip(text) -> State:
    state, out = _hf_text(text), {}
    ends = {
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm.weight": "ln_final.weight", "text_model.final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for name, tensor in state.items():
        layer = re.match(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", name)
        if name in ends:
            out[ends[name]] = tensor
        elif name == "text_projection.weight":
            out["text_projection"] = tensor.T
        elif layer and (layer[2] in inner or layer[2] == "self_attn.out_proj"):
            new = inner.get(layer[2], "attn.out_proj")
            out[f"transformer.resblocks.{layer[1]}.{new}.{layer[3]}"] = tensor
    for number in range(text.config.num_hidden_layers):
        attention = f"text_model.encoder.layers.{number}.self_attn."
        for kind in ("weight", "bias"):
            joined = _joined(state, attention, ("q_proj", "k_proj", "v_proj"), kind)
            out[f"transformer.resblocks.{number}.attn.in_proj_{kind}"] = joined
    return out


def _joined(state: Mapping[str, Tensor], prefix: str, parts: Iterable[str], kind: str) -> Tensor:
    return torch.cat([state[f"{prefix}{part}.{kind}"] for part in parts])


def _swapped(tensor: Tensor) -> Tensor:
    """Scale and shift in the other order, as the original code has them."""
    scale, shift = tensor.chunk(2)
    return torch.cat([shift, scale])


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
