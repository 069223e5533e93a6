"""U-Nets over CLIP text encoders: Stable Diffusion 1.x and 2.x (`sd`) and SDXL (`sdxl`).

Whether a checkpoint predicts epsilon or v is in its scheduler, and read from there.
Shapes: B rows, C H W latent, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from rollout.families.base import PipelineFamily


class StableDiffusionFamily(PipelineFamily):
    """One text encoder's hidden states [B, L, D]."""

    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    @classmethod
    def pipeline_classes(cls) -> tuple[Any, ...]:
        return (StableDiffusionPipeline,)

    def _encode(self, prompts: list[str], negative_prompt: str, device: torch.device) -> dict[str, Tensor]:
        embeds, negative = self.pipeline.encode_prompt(
            prompts, device, 1, True, negative_prompt=[negative_prompt] * len(prompts)
        )
        return {"prompt_embeds": embeds, "negative_prompt_embeds": negative}

    def _call(self, network: nn.Module, x: Tensor, t: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        return network(x, t, encoder_hidden_states=tensors["prompt_embeds"], return_dict=False)[0]


class StableDiffusionXLFamily(PipelineFamily):
    """Two text encoders' hidden states [B, L, D], the second one's pooled state [B, P], and the picture's size.

    Original and target size are the picture's, without a crop. An empty negative prompt follows the checkpoint's
    `force_zeros_for_empty_prompt`, as the stock pipeline does.
    """

    text_parts = ("text_encoder_2", "text_encoder", "tokenizer", "tokenizer_2")
    unused = {"image_encoder": None, "feature_extractor": None, "add_watermarker": False}

    @classmethod
    def pipeline_classes(cls) -> tuple[Any, ...]:
        return (StableDiffusionXLPipeline,)

    def check(self) -> None:
        if self.vae is not None and self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.float()  # it overflows in float16; model.vae: madebyollin/sdxl-vae-fp16-fix does not

    def _encode(self, prompts: list[str], negative_prompt: str, device: torch.device) -> dict[str, Tensor]:
        embeds, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompts, device=device, negative_prompt=[negative_prompt] * len(prompts) if negative_prompt else None
        )
        return {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative,
            "pooled": pooled,
            "negative_pooled": negative_pooled,
        }

    def _call(self, network: nn.Module, x: Tensor, t: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        size = (x.shape[-2] * self.vae_scale_factor, x.shape[-1] * self.vae_scale_factor)
        pooled = tensors["pooled"]
        time_ids = torch.tensor([*size, 0, 0, *size], dtype=x.dtype, device=x.device).expand(len(x), -1)
        return network(
            x,
            t,
            encoder_hidden_states=tensors["prompt_embeds"],
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            return_dict=False,
        )[0]
