"""Small checkpoints in the real formats, made on the spot: what tests load instead of downloaded models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rollout.final_records import FinalGroup
from rollout.group_record import GroupRecord
from rollout.records import PreferenceGroup
from rollout.trajectory_records import TrajectoryGroup

MAX_TOKENS = 16


def tiny_tokenizer(folder: Path, *, length: int = MAX_TOKENS) -> CLIPTokenizer:
    """A CLIP tokenizer whose tokens are single bytes; prompts of at most `length` tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end = "<|endoftext|>"
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def tiny_pipeline(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write a Stable-Diffusion-1.x-shaped pipeline of random weights (4x8x8 latents, 32x32 pixels)."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS, projection_dim=32,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.5,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_group(
    ordinal: int = 0,
    *,
    pairs: int = 3,
    policy_step: int = 0,
    adapter_sha256: str = "0" * 64,
    worker: str = "worker-0",
    shared: bool = True,
    seed: int | None = None,
    latent: tuple[int, int, int] = (4, 8, 8),
    tokens: int = MAX_TOKENS,
    width: int = 32,
) -> PreferenceGroup:
    """A valid group of random numbers for the tiny pipeline's shapes."""
    generator = torch.Generator().manual_seed(ordinal if seed is None else seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def latents() -> Tensor:
        return noise(pairs, *latent)

    return PreferenceGroup(
        ordinal=ordinal,
        prompt=f"prompt {ordinal}",
        seed=ordinal,
        policy_step=policy_step,
        adapter_sha256=adapter_sha256,
        worker=worker,
        conditioning={"prompt_embeds": noise(tokens, width), "negative_prompt_embeds": noise(tokens, width)},
        x_t=latents(),
        x_t_lose=None if shared else latents(),
        x_prev_win=latents(),
        x_prev_lose=latents(),
        timestep=torch.tensor([701 - 50 * (n % 15) for n in range(pairs)], dtype=torch.int64),
        ref_mean_win=latents(),
        ref_mean_lose=None if shared else latents(),
        score_win=noise(pairs).abs(),
        score_lose=-noise(pairs).abs(),
        behaviour_logp_win=noise(pairs),
        behaviour_logp_lose=noise(pairs),
        scores=noise(16, 4),
        score_timesteps=torch.arange(16, dtype=torch.int64),
        final_score=float(noise(1)),
    )


def assert_equal_groups(mine: GroupRecord, theirs: GroupRecord) -> None:
    """Of one kind, and the same in every field, bit for bit."""
    assert type(mine) is type(theirs)
    for spec in dataclasses.fields(mine):
        left, right = getattr(mine, spec.name), getattr(theirs, spec.name)
        if isinstance(left, Tensor):
            assert torch.equal(left, right), spec.name
        elif spec.name == "conditioning":
            assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
        else:
            assert left == right, spec.name


def make_final_group(
    ordinal: int = 0,
    *,
    pairs: int = 1,
    single: bool = False,
    latent: tuple[int, int, int] = (4, 8, 8),
    policy_step: int = 0,
) -> FinalGroup:
    """A valid group of random final latents for the tiny pipeline's shapes: pairs, or single pictures."""
    generator = torch.Generator().manual_seed(ordinal)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return FinalGroup(
        ordinal=ordinal,
        prompt=f"prompt {ordinal}",
        seed=ordinal,
        policy_step=policy_step,
        adapter_sha256="0" * 64,
        worker="worker-0",
        conditioning={name: noise(MAX_TOKENS, 32) for name in ("prompt_embeds", "negative_prompt_embeds")},
        z_win=noise(pairs, *latent),
        z_lose=None if single else noise(pairs, *latent),
        score_win=noise(pairs).abs(),
        score_lose=None if single else -noise(pairs).abs(),
        scores=noise(1, 5),
        final_score=float(noise(1)),
    )


def make_trajectory_group(
    ordinal: int = 0, *, trajectories: int = 2, steps: int = 5, latent: tuple[int, int, int] = (4, 8, 8)
) -> TrajectoryGroup:
    """A valid group of random transitions for the tiny pipeline's shapes."""
    generator = torch.Generator().manual_seed(ordinal)
    rows = trajectories * steps

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return TrajectoryGroup(
        ordinal=ordinal,
        prompt=f"prompt {ordinal}",
        seed=ordinal,
        policy_step=0,
        adapter_sha256="0" * 64,
        worker="worker-0",
        conditioning={name: noise(MAX_TOKENS, 32) for name in ("prompt_embeds", "negative_prompt_embeds")},
        x_t=noise(rows, *latent),
        x_prev=noise(rows, *latent),
        timestep=torch.arange(steps - 1, -1, -1, dtype=torch.int64).mul(200).add(1).repeat(trajectories),
        behaviour_logp=noise(rows),
        advantage=noise(rows),
        scores=noise(1, trajectories),
        final_score=float(noise(1)),
    )
