"""What activations need: every allocation of a network's passes followed, on tensors without data, at published sizes.

    python -m tests.benchmarks.activation_memory [FAMILY ..]

Counts the most bytes alive of one forward pass without gradients, of a training step's forward and backward pass with
and without gradient checkpointing, and of the decoder. Weights are not in it, nor what kernels need for themselves.
Attention is the fused one, which keeps no table of tokens by tokens.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPModel

from configs.model import LoraSection
from reward.step_aware import StepAwarePreferenceModel
from rollout.trainable import inject_lora
from tests.benchmarks.live_bytes import LiveBytes
from tests.benchmarks.published import NETWORKS, vit_h_config

BASE = torch.bfloat16
SIDES = {"sd": 64, "sdxl": 128, "pixart": 128, "sd3": 128, "flux": 128}
"""Latents a side of the pictures that the models were trained at."""
TEXT_TOKENS = {"sd": (77, 768), "sdxl": (77, 2048), "pixart": (300, 4096), "sd3": (333, 4096), "flux": (512, 4096)}


def network_bytes(family: str, rows: int, *, training: bool, checkpointed: bool = False, side: int = 0) -> int:
    """Peak of one pass over `rows` latents of `side`, of the published network in bfloat16 with a float32 adapter."""
    with torch.device("meta"):
        network_class, settings = NETWORKS[family]
        network: Any = network_class(**settings).requires_grad_(False)
        inject_lora(network, LoraSection(rank=4))
    if checkpointed:
        network.enable_gradient_checkpointing()
    with FakeTensorMode():
        _without_data(network)
        given = _inputs(family, rows, side or SIDES[family])
        with LiveBytes(ignore=[*network.parameters(), *network.buffers()]) as live, torch.set_grad_enabled(training):
            output = network.train(training)(**given, return_dict=False)[0]
            if training:
                output.float().square().mean().backward()
    return live.peak


def decoder_bytes(pixels: int, channels: int = 4) -> int:
    """Peak of decoding one picture of `pixels` a side, in bfloat16, by Stable Diffusion's autoencoder."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=channels, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).requires_grad_(False)  # fmt: skip
    with FakeTensorMode():
        _without_data(vae)
        latents = torch.empty(1, channels, pixels // 8, pixels // 8, dtype=BASE)
        with LiveBytes(ignore=list(vae.parameters())) as live, torch.no_grad():
            vae.decode(latents, return_dict=False)
    return live.peak


def encoder_bytes(pixels: int) -> int:
    """Peak of encoding one picture of `pixels` a side, in bfloat16, by Stable Diffusion's autoencoder."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).requires_grad_(False)  # fmt: skip
    with FakeTensorMode():
        _without_data(vae)
        with LiveBytes(ignore=list(vae.parameters())) as live, torch.no_grad():
            vae.encode(torch.empty(1, 3, pixels, pixels, dtype=BASE), return_dict=False)
    return live.peak


def scorer_bytes(rows: int, *, autocast: bool, checkpointed: bool) -> int:
    """What a preference model of ViT-H's size keeps of `rows` pictures and captions for its backward pass."""
    with torch.device("meta"):
        model = StepAwarePreferenceModel(CLIPModel(vit_h_config()))
    model.gradient_checkpointing = checkpointed
    with FakeTensorMode():
        _without_data(model, base=torch.float32, trained=True)
        pictures, ids = torch.empty(rows, 3, 224, 224), torch.zeros(rows, 77, dtype=torch.int64)
        with (
            LiveBytes(ignore=[*model.parameters(), *model.buffers()]) as live,
            torch.autocast("cpu", BASE, enabled=autocast),
        ):
            scores = model(pictures, ids, torch.zeros(rows, dtype=torch.int64))
        assert scores.requires_grad
    return live.now


def _without_data(module: nn.Module, *, base: torch.dtype = BASE, trained: bool = False) -> None:
    """Parameters and buffers as tensors with a place but no data: the adapter's float32, all others of the base."""
    for name, part in module.named_modules():
        adapter = ".lora_" in name
        for own, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=torch.float32 if adapter else base)
                part._parameters[own] = nn.Parameter(empty, requires_grad=adapter or trained)
        for own, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[own] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def _inputs(family: str, rows: int, side: int) -> dict[str, Any]:
    """What the family's network is called with."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=BASE)

    tokens, width = TEXT_TOKENS[family]
    text, timestep = empty(rows, tokens, width), torch.empty(rows)
    if family == "sd":
        return {"sample": empty(rows, 4, side, side), "timestep": timestep, "encoder_hidden_states": text}
    if family == "sdxl":
        added = {"text_embeds": empty(rows, 1280), "time_ids": empty(rows, 6)}
        sample = empty(rows, 4, side, side)
        return {
            "sample": sample, "timestep": timestep, "encoder_hidden_states": text, "added_cond_kwargs": added
        }  # fmt: skip
    common = {"timestep": timestep, "encoder_hidden_states": text}
    if family == "pixart":
        sizes = {"resolution": None, "aspect_ratio": None}
        mask = empty(rows, tokens)
        hidden = empty(rows, 4, side, side)
        return {**common, "hidden_states": hidden, "encoder_attention_mask": mask, "added_cond_kwargs": sizes}
    if family == "sd3":
        return {**common, "hidden_states": empty(rows, 16, side, side), "pooled_projections": empty(rows, 2048)}
    patches = (side // 2) ** 2
    return {
        **common, "hidden_states": empty(rows, patches, 64), "pooled_projections": empty(rows, 768),
        "guidance": torch.empty(rows), "txt_ids": torch.empty(tokens, 3), "img_ids": torch.empty(patches, 3),
    }  # fmt: skip


def main() -> None:
    print("| family | sampling | training | training, checkpointed |  (GB a latent of the model's own size)")
    for family in sys.argv[1:] or SIDES:
        found = (
            network_bytes(family, 1, training=False),
            network_bytes(family, 1, training=True),
            network_bytes(family, 1, training=True, checkpointed=True),
        )
        print(f"| {family} | " + " | ".join(f"{value / 1e9:.3f}" for value in found) + " |", flush=True)
    for pixels in (512, 1024):
        print(f"| decoder, {pixels} | {decoder_bytes(pixels) / 1e9:.3f} |", flush=True)


if __name__ == "__main__":
    main()
