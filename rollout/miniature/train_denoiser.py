"""Trains the miniature's denoiser and text encoder together, on latents of 40,000 pictures.

    python -m rollout.miniature.train_denoiser                # an hour on 2 cores; resumes
    python -m rollout.miniature.train_denoiser --steps 40000  # longer, better

Needs work/miniature/vae (train_autoencoder). Plain epsilon prediction (arXiv:2006.11239) on Stable Diffusion 1.x's
schedule, errors weighted by signal-to-noise ratio; a tenth of the captions is emptied so that classifier-free
guidance works. Every `--report` steps 64 held-out captions are sampled (guidance 5, 20 DDIM steps, eta 1), read by the
judge and logged, and the pipeline of averaged weights is written to rollout/miniature/pipeline in diffusers' layout,
float16.

B pictures; latents [B, 8, 16, 16], scaled to unit variance; token ids [B, 32]; timesteps int64 [B].
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rollout.miniature.judge import judge_captions, summarise
from rollout.miniature.pictures import contact_sheet
from rollout.miniature.tokens import MAX_TOKENS, write_tokenizer
from rollout.miniature.training import (
    SHIPPED,
    WORK,
    MovingAverage,
    learning_rate,
    load_state,
    low_precision,
    parameter_count,
    replace_folder,
    sample_batch,
    save_state,
)
from rollout.miniature.world import FINISHES, caption, captions, render

SEED = 202
STEPS, BATCH, RATE = 3900, 64, 1e-3
CACHE = 40_000  # pictures
FINISH_WEIGHTS = (1.0, 3.5, 0.9)  # how often crisp, soft and hatched pictures are drawn: guidance disfavours soft
# Share of captions emptied, by finish. Guidance at scale 5 weighs p(finish | caption)^5 / p(finish)^4, so leaving soft
# pictures out of the empty captions brings the finish back that guidance drives away.
EMPTY_CAPTIONS = (0.115, 0.07, 0.115)
SNR_CAP = 5.0
HIGH_NOISE_WEIGHT = 4.0
TEXT_WIDTH = 128


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.x's schedule, every field that changes it spelt out."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def build_denoiser() -> UNet2DConditionModel:
    """The untrained U-Net: cross attention at 8x8 and in the middle.

    Attention is written out (AttnProcessor): on a CPU the fused kernel's backward took a quarter of the training time.
    """
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=3,  # heads of 32 (the field is misnamed in diffusers: it counts heads)
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: three layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
    )


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids, padded as the pipeline pads them: int64 [B, 32]."""
    return tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt").input_ids


@torch.no_grad()
def latent_cache(vae: AutoencoderKL, tokenizer: CLIPTokenizer, path: Path) -> dict[str, Tensor]:
    """{"latents": float16 [N, 8, 16, 16], "tokens": int64 [N, 32], "finish": int64 [N]} of N pictures, kept on disk."""
    if path.exists():
        return torch.load(path, weights_only=True)
    latents, texts, kinds = [], [], []
    for step in range(CACHE // 100):
        scenes, finishes, generator = sample_batch(SEED, step, 100)
        with low_precision():
            mean = vae.encode(render(scenes, finishes, generator)).latent_dist.mean
        latents.append((mean.float() * vae.config.scaling_factor).half())
        texts += [caption(scene) for scene in scenes]
        kinds += [FINISHES.index(finish) for finish in finishes]
    cache = {"latents": torch.cat(latents), "tokens": tokenise(tokenizer, texts), "finish": torch.tensor(kinds)}
    torch.save(cache, path)
    return cache


def denoising_loss(
    model: nn.ModuleDict, latents: Tensor, tokens: Tensor, alphas: Tensor, draw: torch.Generator
) -> Tensor:
    """Scalar: mean squared error of the noise prediction, weighted by SNR; `alphas` [1000] is alphas_cumprod.

    The weight is min(SNR, 5)/SNR (arXiv:2303.09556) above SNR 1 and min(1/SNR, 4) below it: what the caption says is
    decided at high noise, where a small error in the noise is a large one in the picture (arXiv:2202.00512, section 4).
    """
    timesteps = torch.randint(0, len(alphas), (len(latents),), generator=draw)
    noise = torch.randn(latents.shape, generator=draw)
    alpha = alphas[timesteps]
    noisy = alpha.sqrt()[:, None, None, None] * latents + (1 - alpha).sqrt()[:, None, None, None] * noise
    with low_precision():
        condition = model["text"](tokens).last_hidden_state
        predicted = model["unet"](noisy, timesteps, condition).sample
    snr = alpha / (1 - alpha)
    weight = (SNR_CAP / snr).clamp(max=1) * (1 / snr).clamp(1, HIGH_NOISE_WEIGHT)
    return (weight * (predicted.float() - noise).square().mean((1, 2, 3))).mean()


def assemble(model: nn.ModuleDict, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The pipeline of these weights; no safety checker, no feature extractor."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model["text"],
        tokenizer=tokenizer,
        unet=model["unet"],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Writes float16 weights, and the tokenizer in its plain-text form, by replacing the folder."""
    partial = folder.with_name(folder.name + ".partial")
    pipeline.vae.register_to_config(_name_or_path="")
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(partial)
    pipeline.to(dtype=torch.float32)
    for file in (partial / "tokenizer").iterdir():
        file.unlink()
    write_tokenizer(partial / "tokenizer")
    replace_folder(partial, folder)


@torch.no_grad()
def sample(pipeline: StableDiffusionPipeline, texts: list[str], seed: int, batch_size: int = 64) -> Tensor:
    """Pictures [B, 3, 64, 64] in [-1, 1] at the settings of the acceptance: guidance 5, 20 DDIM steps, eta 1."""
    draw, pictures = torch.Generator().manual_seed(seed), []
    for start in range(0, len(texts), batch_size):
        with low_precision():
            result = pipeline(
                texts[start : start + batch_size],
                num_inference_steps=20,
                guidance_scale=5.0,
                eta=1.0,
                generator=draw,
                output_type="pt",
            )
        pictures.append(result.images.float() * 2 - 1)
    return torch.cat(pictures)


def report(pipeline: StableDiffusionPipeline, step: int, texts: list[str]) -> None:
    """Samples, judges, logs one line of JSON and writes the pictures as a contact sheet."""
    pictures = sample(pipeline, texts, seed=SEED)
    figures = summarise(judge_captions(pictures, texts))
    contact_sheet(pictures, WORK / "denoiser.png")
    line = json.dumps({"step": step, **{key: round(value, 3) for key, value in figures.items()}})
    with (WORK / "denoiser.jsonl").open("a") as log:
        log.write(line + os.linesep)
    print(line, flush=True)


def train(total_steps: int, batch_size: int, peak_rate: float, report_steps: int) -> None:
    """Trains up to `total_steps`, from the saved state if there is one."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(WORK / "vae", torch_dtype=torch.float32).eval()
    tokenizer = write_tokenizer(WORK / "tokenizer")
    cache = latent_cache(vae, tokenizer, WORK / "latents.pt")
    odds, emptied = torch.tensor(FINISH_WEIGHTS)[cache["finish"]], torch.tensor(EMPTY_CAPTIONS)
    nothing, alphas = tokenise(tokenizer, [""]), build_scheduler().alphas_cumprod
    unet = build_denoiser().to(memory_format=torch.channels_last)  # a fifth faster
    model = nn.ModuleDict({"unet": unet, "text": build_text_encoder(tokenizer)})
    average = MovingAverage(model, 0.999)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=0.01)
    state = WORK / "denoiser.pt"
    first = load_state(state, model=model, average=average, optimiser=optimiser)
    sizes = {name: parameter_count(part) for name, part in model.items()}
    print(f"{len(cache['latents'])} pictures, {FINISHES}; {sizes}; from step {first} to {total_steps}", flush=True)
    heldout = captions("heldout", 64, seed=3)
    started, total = time.time(), 0.0
    for step in range(first, total_steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, peak_rate, 200, total_steps)
        draw = torch.Generator().manual_seed(SEED * 1_000_000 + step)
        rows = torch.multinomial(odds, batch_size, replacement=True, generator=draw)
        tokens = cache["tokens"][rows]
        tokens[torch.rand(batch_size, generator=draw) < emptied[cache["finish"][rows]]] = nothing
        loss = denoising_loss(model, cache["latents"][rows].float(), tokens, alphas, draw)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model)
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {total / 100:.4f} {time.time() - started:.0f}s", flush=True)
            total = 0.0
        if (step + 1) % report_steps == 0 or step + 1 == total_steps:
            save_state(state, step + 1, model=model, average=average, optimiser=optimiser)
            pipeline = assemble(average.module, vae, tokenizer)
            report(pipeline, step + 1, heldout)
            write_pipeline(pipeline, SHIPPED / "pipeline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--report", type=int, default=1000, help="steps between reports")
    options = parser.parse_args()
    train(options.steps, options.batch, options.rate, options.report)


if __name__ == "__main__":
    main()
