"""Flow matching: Stable Diffusion 3.x (`sd3`) and FLUX.1 (`flux`). Their networks predict a velocity.

Shapes: B rows, C H W latent, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn

from configs.model import NoiseSection
from rollout.conditioning import Conditioning
from rollout.families.base import PipelineFamily
from rollout.flow import flow_schedule
from rollout.transition import NoiseSchedule


class StableDiffusion3Family(PipelineFamily):
    """Two CLIP encoders' and T5's hidden states [B, L, D], and the two CLIPs' pooled states [B, P].

    Without T5 (`model.t5: false`) its tokens are zeros, as diffusers has it.
    """

    network_part = "transformer"
    text_parts = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    unused = {"image_encoder": None, "feature_extractor": None}

    @classmethod
    def pipeline_classes(cls) -> tuple[Any, ...]:
        return (StableDiffusion3Pipeline,)

    @classmethod
    def without_t5(cls) -> dict[str, Any]:
        return {"text_encoder_3": None, "tokenizer_3": None}

    @property
    def size_step(self) -> int:
        return self.vae_scale_factor * int(self.network.config.patch_size)

    def schedule(self, noise: NoiseSection, latent_shape: tuple[int, int, int]) -> NoiseSchedule:
        tokens = (latent_shape[1] // int(self.network.config.patch_size)) ** 2
        return flow_schedule(
            self.scheduler, noise.num_steps, noise_level=noise.flow_noise_level, tokens=tokens, from_one_to_last=False
        )

    def _encode(self, prompts: list[str], negative_prompt: str, device: torch.device) -> dict[str, Tensor]:
        embeds, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompts, None, None, device, negative_prompt=[negative_prompt] * len(prompts)
        )
        return {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative,
            "pooled": pooled,
            "negative_pooled": negative_pooled,
        }

    def _call(self, network: nn.Module, x: Tensor, t: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        return network(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=tensors["prompt_embeds"],
            pooled_projections=tensors["pooled"],
            return_dict=False,
        )[0]


class FluxFamily(PipelineFamily):
    """T5's hidden states [B, L, D] and CLIP's pooled state [B, P]; the guidance scale is an input of the network.

    So guidance costs no second evaluation, and there is no negative prompt. The network reads latents packed in 2x2
    patches; everything outside it keeps them as [B, C, H, W].
    """

    network_part = "transformer"
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    unused = {"image_encoder": None, "feature_extractor": None}

    @classmethod
    def pipeline_classes(cls) -> tuple[Any, ...]:
        return (FluxPipeline,)

    @property
    def size_step(self) -> int:
        return 2 * self.vae_scale_factor

    def channels(self) -> int:
        return int(self.network.config.in_channels) // 4

    def default_size(self) -> int:
        return int(self.pipeline.default_sample_size)

    def schedule(self, noise: NoiseSection, latent_shape: tuple[int, int, int]) -> NoiseSchedule:
        tokens = (latent_shape[1] // 2) * (latent_shape[2] // 2)
        return flow_schedule(
            self.scheduler, noise.num_steps, noise_level=noise.flow_noise_level, tokens=tokens, from_one_to_last=True
        )

    def _encode(self, prompts: list[str], negative_prompt: str, device: torch.device) -> dict[str, Tensor]:
        if negative_prompt:
            raise ValueError(
                f"noise.negative_prompt = {negative_prompt!r}: FLUX has no negative prompt; leave it empty"
            )
        embeds, pooled, _ = self.pipeline.encode_prompt(prompts, device=device)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def forward(self, network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
        dtype, (rows, channels, height, width) = self.network.dtype, x.shape
        embeds, pooled = (conditioning.tensors[name].to(x.device, dtype) for name in ("prompt_embeds", "pooled"))
        distilled = self.network.config.guidance_embeds
        ids = self.pipeline._prepare_latent_image_ids(rows, height // 2, width // 2, x.device, dtype)
        packed = network(
            hidden_states=self.pipeline._pack_latents(x.to(dtype), rows, channels, height, width),
            timestep=t.to(dtype) / 1000,  # rounded first, as the stock pipeline does
            guidance=torch.full((rows,), scale, dtype=torch.float32, device=x.device) if distilled else None,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, dtype=dtype, device=x.device),
            img_ids=ids,
            return_dict=False,
        )[0]
        factor = self.vae_scale_factor
        return self.pipeline._unpack_latents(packed, height * factor, width * factor, factor).float()
