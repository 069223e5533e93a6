"""What differs between model families: how a prompt is encoded and how the network is called. Nothing else.

Shapes: B rows, C H W latent, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from rollout.conditioning import Conditioning


class Family(Protocol):
    """One model family over the components of its diffusers pipeline."""

    network: Any
    vae: Any
    scheduler: Any

    def to(self, device: torch.device) -> None:
        """Freeze every part and move it."""
        ...

    def encode(self, prompts: Sequence[str], negative_prompt: str) -> Conditioning: ...

    def forward(self, network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
        """Guided network output float32 [B, C, H, W] for x float32 [B, C, H, W] and t int64 [B]."""
        ...

    def latent_shape(self, image_size: int | None) -> tuple[int, int, int]: ...


class StableDiffusionFamily:
    """Pipelines shaped like Stable Diffusion 1.x: a U-Net over one text encoder's hidden states."""

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.network: Any = pipeline.unet
        self.vae: Any = pipeline.vae
        self.scheduler: Any = pipeline.scheduler
        self.vae_scale_factor: int = pipeline.vae_scale_factor
        self._text_encoder: Any = pipeline.text_encoder
        self._tokenizer: Any = pipeline.tokenizer

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, *, network_only: bool) -> StableDiffusionFamily:
        """Read the pipeline in `path`; `network_only` leaves decoder and text encoder out (a learner needs neither)."""
        absent = {"vae": None, "text_encoder": None, "tokenizer": None} if network_only else {}
        pipeline = StableDiffusionPipeline.from_pretrained(
            path,
            dtype=dtype,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **absent,
        )
        return cls(pipeline)

    def to(self, device: torch.device) -> None:
        for part in (self.network, self.vae, self._text_encoder):
            if part is not None:
                part.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative_prompt: str) -> Conditioning:
        """`prompt_embeds` and `negative_prompt_embeds`, each [B, L, D]."""
        if self._text_encoder is None:
            raise RuntimeError("this policy was loaded without its text encoder (network_only)")
        embeds = self._hidden_states(list(prompts))
        negative = self._hidden_states([negative_prompt]).expand(len(prompts), -1, -1)
        return Conditioning({"prompt_embeds": embeds, "negative_prompt_embeds": negative})

    def _hidden_states(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(
            texts,
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids = tokens.input_ids.to(self._text_encoder.device)
        return self._text_encoder(ids)[0].float()

    def forward(self, network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
        dtype = self.network.dtype
        embeds = conditioning.tensors["prompt_embeds"].to(x.device, dtype)
        if scale == 1.0:
            return network(x.to(dtype), t, encoder_hidden_states=embeds, return_dict=False)[0].float()
        negative = conditioning.tensors["negative_prompt_embeds"].to(x.device, dtype)
        output = network(
            torch.cat([x, x]).to(dtype),
            torch.cat([t, t]),
            encoder_hidden_states=torch.cat([negative, embeds]),
            return_dict=False,
        )[0].float()
        unconditional, conditional = output.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    def latent_shape(self, image_size: int | None) -> tuple[int, int, int]:
        config = self.network.config
        size = config.sample_size if image_size is None else image_size // self.vae_scale_factor
        return (config.in_channels, size, size)


FAMILIES = {"sd": StableDiffusionFamily}
