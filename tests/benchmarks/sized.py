"""Random-weight models of a published size: what throughput and memory are measured with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from configs.model import LoraSection, ModelSection, NoiseSection
from configs.scorers import StepAwareScorer as ScorerSettings
from reward import Scorer, build_scorer
from rollout.families import StableDiffusionFamily, StableDiffusionXLFamily
from rollout.policy import DiffusionPolicy, assemble_policy, load_policy, resolve_dtype
from tests.benchmarks.published import SDXL_UNET, vit_h_config
from tests.tiny import tiny_tokenizer


def autoencoder(**settings: Any) -> AutoencoderKL:
    """Stable Diffusion's and SDXL's, random weights."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **settings,
    )  # fmt: skip


def ddim_scheduler() -> DDIMScheduler:
    """Both models' noise table."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def sd15_policy(device: torch.device, *, dtype: str = "auto", seed: int = 0) -> DiffusionPolicy:
    """Stable Diffusion 1.5's network (860 M), decoder and text encoder (ViT-L) with random weights."""
    model = ModelSection(pretrained="random-sd15", dtype=dtype)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer(Path(folder), length=77)
    with torch.device(device):
        torch.set_default_dtype(resolve_dtype(dtype, device))
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = autoencoder(sample_size=512)
        ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
        widths = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        text = CLIPTextModel(CLIPTextConfig(**widths, **ends))
        torch.set_default_dtype(torch.float32)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=ddim_scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return assemble_policy(StableDiffusionFamily(pipeline), model, NoiseSection(), device, seed=seed)


def sdxl_policy(device: torch.device, *, dtype: str = "auto", seed: int = 0) -> DiffusionPolicy:
    """SDXL's network (2.6 B), decoder and both text encoders (ViT-L, ViT-bigG) with random weights, rank 64."""
    model = ModelSection(family="sdxl", pretrained="random-sdxl", dtype=dtype, lora=LoraSection(rank=64))
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer(Path(folder), length=77)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    small = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    big = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    with torch.device(device):
        torch.set_default_dtype(resolve_dtype(dtype, device))
        unet = UNet2DConditionModel(**SDXL_UNET)
        vae = autoencoder(sample_size=1024, scaling_factor=0.13025)
        text = CLIPTextModel(CLIPTextConfig(**small, **ends))
        text_2 = CLIPTextModelWithProjection(CLIPTextConfig(**big, **ends, projection_dim=1280, hidden_act="gelu"))
        torch.set_default_dtype(torch.float32)
    pipeline = StableDiffusionXLPipeline(
        vae=vae, text_encoder=text, text_encoder_2=text_2, tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        scheduler=ddim_scheduler(), add_watermarker=False,
    )  # fmt: skip
    return assemble_policy(StableDiffusionXLFamily(pipeline), model, NoiseSection(), device, seed=seed)


def write_vit_h_clip(folder: Path) -> Path:
    """CLIP ViT-H/14 of random weights in HF's format, with a tokenizer of single bytes; returns the folder."""
    tokenizer = tiny_tokenizer(folder, length=77)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    CLIPModel(vit_h_config(**ends)).save_pretrained(folder)
    return folder


def vit_h_scorer(device: torch.device, folder: Path) -> Scorer:
    """A step-aware preference model of CLIP ViT-H/14's size at its start, random weights."""
    return build_scorer(ScorerSettings(clip=str(write_vit_h_clip(folder))), device)


def miniature(device: torch.device, *, dtype: str = "auto", seed: int = 0) -> tuple[DiffusionPolicy, Scorer]:
    """The model in this repository and its preference model."""
    policy = load_policy(ModelSection(dtype=dtype), NoiseSection(), device, seed=seed)
    return policy, build_scorer(ScorerSettings(), device)
