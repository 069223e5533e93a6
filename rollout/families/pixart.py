"""PixArt-alpha and PixArt-Sigma: a diffusion transformer (DiT) over T5's hidden states.

Their networks also predict a variance, as further output channels that sampling does not use: they are dropped.
Shapes: B rows, C H W latent, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from torch import Tensor, nn

from rollout.families.base import PipelineFamily


class PixArtFamily(PipelineFamily):
    """T5's hidden states [B, L, D] and its attention mask [B, L]."""

    network_part = "transformer"

    @classmethod
    def pipeline_classes(cls) -> tuple[Any, ...]:
        return (PixArtSigmaPipeline, PixArtAlphaPipeline)

    @property
    def size_step(self) -> int:
        return self.vae_scale_factor * int(self.network.config.patch_size)

    def _encode(self, prompts: list[str], negative_prompt: str, device: torch.device) -> dict[str, Tensor]:
        embeds, mask, negative, negative_mask = self.pipeline.encode_prompt(
            prompts, negative_prompt=negative_prompt, device=device
        )
        return {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative,
            "mask": mask,
            "negative_mask": negative_mask,
        }

    def _call(self, network: nn.Module, x: Tensor, t: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.network.use_additional_conditions:
            height, width = (side * self.vae_scale_factor for side in x.shape[-2:])
            added["resolution"] = torch.tensor([height, width], dtype=x.dtype, device=x.device).expand(len(x), -1)
            added["aspect_ratio"] = torch.tensor([height / width], dtype=x.dtype, device=x.device).expand(len(x), -1)
        output = network(
            x,
            encoder_hidden_states=tensors["prompt_embeds"],
            encoder_attention_mask=tensors["mask"],
            timestep=t,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output[:, : x.shape[1]]
