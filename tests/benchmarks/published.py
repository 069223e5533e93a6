"""The published configurations of the families' networks, for random weights of their size."""

from __future__ import annotations

from typing import Any

from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPConfig

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip

NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sd": (UNet2DConditionModel, {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}),
    "sdxl": (UNet2DConditionModel, SDXL_UNET),
    "pixart": (
        PixArtTransformer2DModel,
        {"sample_size": 128, "caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
    ),
    "sd3": (
        SD3Transformer2DModel,
        {
            "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192,
            "joint_attention_dim": 4096,
        },
    ),
    "flux": (FluxTransformer2DModel, {"guidance_embeds": True}),
}  # fmt: skip
"""Family -> the network's class and configuration."""


def vit_h_config(**text: Any) -> CLIPConfig:
    """CLIP ViT-H/14, as PickScore has it; `text` goes to the text tower too (its end tokens)."""
    return CLIPConfig(
        text_config={
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "hidden_act": "gelu", **text,
        },
        vision_config={
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "patch_size": 14, "image_size": 224, "hidden_act": "gelu",
        },
        projection_dim=1024,
    )  # fmt: skip
