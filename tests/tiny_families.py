"""Small pipelines of every family in its real layout: 4x8x8 or 16x8x8 latents, 32x32 pixels, random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny import MAX_TOKENS, tiny_pipeline, tiny_tokenizer

WIDTH, WIDE = 32, 48
"""Channels of a first and of a second CLIP text encoder, which differ in the released models too."""


def tiny_family(family: str, folder: Path, *, seed: int = 0, **variant) -> Path:
    """Write a tiny pipeline of `family` (as in `model.family`) to `folder`."""
    torch.manual_seed(seed)
    if family == "sd" and "kind" not in variant:
        return tiny_pipeline(folder, seed=seed, **variant)
    {"sd": _sd2, "sdxl": _sdxl, "pixart": _pixart, "sd3": _sd3, "flux": _flux}[family](folder, **variant)
    return folder


def _ddim(prediction_type: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip


def _vae(channels: int, shift: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=channels, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.5,
        shift_factor=shift,
    )  # fmt: skip


def _clip(folder: Path, name: str, kind: type = CLIPTextModel, *, width: int = WIDTH):
    tokenizer = tiny_tokenizer(folder / name)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS, projection_dim=width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer, kind(config)


def _t5() -> tuple[T5Tokenizer, T5EncoderModel]:
    letters = [(chr(code), -2.0) for code in range(97, 123)]
    tokenizer = T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), ("▁", -1.0), *letters], extra_ids=0,
        model_max_length=MAX_TOKENS,
    )  # fmt: skip
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return tokenizer, T5EncoderModel(config)


def _sd2(folder: Path, *, kind: str, prediction_type: str = "v_prediction") -> None:
    """Stable Diffusion 2.x: OpenCLIP's text encoder (GELU, one block fewer), heads by width, linear projections."""
    assert kind == "2"
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS, projection_dim=64, hidden_act="gelu", bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=[2, 4], norm_num_groups=4, use_linear_projection=True,
        upcast_attention=True,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=_vae(4), text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=_ddim(prediction_type),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def _sdxl(folder: Path, *, zeros: bool = True) -> None:
    tokenizer, text = _clip(folder, "tokenizer")
    tokenizer_2, text_2 = _clip(folder, "tokenizer_2", CLIPTextModelWithProjection, width=WIDE)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH + WIDE, attention_head_dim=(2, 4), norm_num_groups=4, use_linear_projection=True,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDE,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=_vae(4), text_encoder=text, text_encoder_2=text_2, tokenizer=tokenizer, tokenizer_2=tokenizer_2, unet=unet,
        scheduler=_ddim(), force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip


def _pixart(folder: Path, *, kind: str = "sigma", sized: bool = False) -> None:
    """`sized`: told resolution and aspect ratio, as PixArt-alpha at 1024 pixels is (latents of 128)."""
    tokenizer, text = _t5()
    transformer = PixArtTransformer2DModel(
        sample_size=128 if sized else 8, num_layers=2, patch_size=2, attention_head_dim=18 if sized else 16,
        num_attention_heads=2, in_channels=4, out_channels=8, cross_attention_dim=36 if sized else WIDTH,
        caption_channels=WIDTH, attention_bias=True, use_additional_conditions=sized,
    )  # fmt: skip
    pipeline = PixArtSigmaPipeline if kind == "sigma" else PixArtAlphaPipeline
    pipeline(
        vae=_vae(4), text_encoder=text, tokenizer=tokenizer, transformer=transformer, scheduler=_ddim()
    ).save_pretrained(folder)


def _sd3(folder: Path) -> None:
    tokenizer, text = _clip(folder, "tokenizer", CLIPTextModelWithProjection)
    tokenizer_2, text_2 = _clip(folder, "tokenizer_2", CLIPTextModelWithProjection, width=WIDE)
    torch.nn.init.eye_(text.text_projection.weight)  # as in the released models
    tokenizer_3, text_3 = _t5()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH + WIDE, caption_projection_dim=WIDTH, pooled_projection_dim=WIDTH + WIDE,
        out_channels=16, pos_embed_max_size=16,
    )  # fmt: skip
    text_3 = T5EncoderModel(T5Config(**{**text_3.config.to_dict(), "d_model": WIDTH + WIDE}))
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(16, shift=0.1),
        text_encoder=text, tokenizer=tokenizer, text_encoder_2=text_2, tokenizer_2=tokenizer_2, text_encoder_3=text_3,
        tokenizer_3=tokenizer_3,
    ).save_pretrained(folder)  # fmt: skip


def _flux(folder: Path, *, guidance: bool = True, wide: bool = False, double: int = 1) -> None:
    """`wide`: FLUX.1's real width. `double`: how many double blocks; there is one single block."""
    tokenizer, text = _clip(folder, "tokenizer")
    tokenizer_2, text_2 = _t5()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=double, num_single_layers=1,
        attention_head_dim=128 if wide else 16, num_attention_heads=24 if wide else 2, joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH, guidance_embeds=guidance, axes_dims_rope=(16, 56, 56) if wide else (4, 6, 6),
    )  # fmt: skip
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=_vae(16, shift=0.1),
        text_encoder=text, tokenizer=tokenizer, text_encoder_2=text_2, tokenizer_2=tokenizer_2, transformer=transformer,
    ).save_pretrained(folder)  # fmt: skip
