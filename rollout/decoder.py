"""The autoencoder's decoder as a loss sees it: gradients flow through it to the latents, its weights stay frozen.

Its activations are what fills the memory, so each picture is decoded by itself under checkpointing, and the blocks of
the decoder are checkpointed again inside: alive at a time are the activations of one block, of one picture, and the
latents and pictures of the micro-batch. That costs two more decodings in the backward pass. See docs/objectives.md.
The decoder runs in float32: a bfloat16 picture has steps of 1/128, coarser than the errors that are compared.
Shapes: M rows, C H W latent, h w pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from configs.model import ModelSection
from rollout.assets import pipeline_path


class PixelDecoder:
    """A frozen decoder that lets gradients through. Build it with `load_decoder`."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae.requires_grad_(False).eval()
        self._vae.decoder.gradient_checkpointing = True
        self._vae.decoder._gradient_checkpointing_func = _recompute
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [M, 3, h, w] of latents [M, C, H, W], about [-1, 1] and not clamped: a clamp has no gradient."""
        pictures = [_recompute(self._one, latent) if latent.requires_grad else self._one(latent)
                    for latent in latents.split(1)]  # fmt: skip
        return torch.cat(pictures)

    def _one(self, latent: Tensor) -> Tensor:
        scaled = (latent / self._scale + self._shift).to(self._vae.dtype)
        picture: Tensor = self._vae.decode(scaled, return_dict=False)[0]
        return picture.to(latent.dtype)


def _recompute(function: Any, *inputs: Any) -> Any:
    return checkpoint(function, *inputs, use_reentrant=False)


def load_decoder(model: ModelSection, device: torch.device) -> PixelDecoder:
    """The decoder of `model` (`model.vae` where that is given) in float32, without its encoder."""
    path, dtype = pipeline_path(model.pretrained), torch.float32
    if model.vae is not None:
        vae = AutoencoderKL.from_pretrained(model.vae, dtype=dtype)
    elif Path(path).is_file():
        vae = AutoencoderKL.from_single_file(path, config=model.config, subfolder="vae", torch_dtype=dtype)
    else:
        vae = AutoencoderKL.from_pretrained(path, subfolder="vae", dtype=dtype)
    vae.encoder = None
    return PixelDecoder(vae.to(device))
