"""Trains the miniature's step-aware preference model (SPM) for the taste `crisp`.

    python -m rollout.miniature.train_preference              # three phases, about 20 minutes on one core, resumable

1. clean    a small CLIP on clean renders: pairs of one caption, crisp preferred; pictures against captions (InfoNCE);
            work/miniature/clip, which configs/miniature_spm.yaml starts from
2. predict  pairs as the sampler sees them: both latents noised alike, t ~ U{0..999}, x0 predicted by the base U-Net
            with guidance 5, decoded, clamped; kept on disk as 8-bit pictures (work/miniature/predictions)
3. step     the CLIP, made time-conditional (reward.step_aware), on those pairs with their t; cross-entropy of the two

Phases 1 and 3 read every picture varied (preference_data.vary), each of a pair on its own and anew at every step.
Departures from the paper: that variation; the start is a CLIP trained here rather than PickScore; and predictions are
made once and used for several epochs. The result is rollout/miniature/spm: CLIP's config and tokenizer, and
step_aware.safetensors; rollout.miniature.measure reports its accuracy by timestep.

T pairs; pictures [T, 3, 64, 64] in [-1, 1]; latents [T, 8, 16, 16]; timesteps int64 [T].
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from reward.losses import preference_loss
from reward.preprocess import clip_pixels
from reward.step_aware import StepAwarePreferenceModel, unit
from rollout.miniature.preference_data import Pairs, sample_pairs, vary
from rollout.miniature.tokens import MAX_TOKENS, write_tokenizer
from rollout.miniature.train_denoiser import tokenise
from rollout.miniature.training import (
    SHIPPED,
    WORK,
    learning_rate,
    load_state,
    parameter_count,
    replace_folder,
    save_state,
)
from rollout.miniature.world import Split

SEED = 303
CLEAN_STEPS, SHARDS, STEPS = 1300, 48, 3000
RATE_CLEAN, RATE = 1e-3, 6e-4
GUIDANCE = 5.0
ACCURACY_AT = (0, 251, 501, 701, 951)  # timesteps
SHARD = 512  # pairs in one file of predictions
PAIRS_PER_STEP = 48


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained CLIP: 64x64 pixels in patches of 8, vision width 96 and three layers, text width 64 and two."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        **special,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 8,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    clip.set_attn_implementation("eager")  # on a CPU the fused kernel's backward is slow
    return clip


@dataclass(frozen=True)
class Predictions:
    """T pairs after noising and prediction: 8-bit pictures [T, 3, 64, 64]; label [T] of the first; timesteps [T]."""

    captions: list[str]
    first: Tensor
    second: Tensor
    label: Tensor
    timesteps: Tensor


@torch.no_grad()
def predict(pipeline: StableDiffusionPipeline, pairs: Pairs, timesteps: Tensor, draw: torch.Generator) -> Predictions:
    """x0 predictions of both pictures of every pair, from the same noise, as a sampler shows them at `timesteps`."""
    vae, alphas = pipeline.vae, pipeline.scheduler.alphas_cumprod
    count = len(timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        clean = vae.encode(torch.cat([pairs.first, pairs.second])).latent_dist.mean.float() * vae.config.scaling_factor
        noise = torch.randn(clean[:count].shape, generator=draw).repeat(2, 1, 1, 1)
        alpha = alphas[timesteps].repeat(2)[:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        tokens = tokenise(pipeline.tokenizer, [*pairs.captions, ""])
        hidden = pipeline.text_encoder(tokens).last_hidden_state
        empty = hidden[-1:].expand(2 * count, -1, -1)
        asked = hidden[:-1].repeat(2, 1, 1)
        output = pipeline.unet(noisy.repeat(2, 1, 1, 1), timesteps.repeat(4), torch.cat([empty, asked])).sample.float()
        without, given = output.chunk(2)
        epsilon = without + GUIDANCE * (given - without)
        predicted = (noisy - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
        images = vae.decode(predicted / vae.config.scaling_factor).sample.float().clamp(-1, 1)
    stored = ((images + 1) * 127.5).round().to(torch.uint8)
    return Predictions(pairs.captions, stored[:count], stored[count:], pairs.label, timesteps)


def predictions(
    pipeline: StableDiffusionPipeline,
    number: int,
    split: Split,
    kinds: dict[str, float] | None = None,
    at: int | None = None,
) -> Predictions:
    """One shard of SHARD pairs: t uniform, or all at one timestep."""
    parts = []
    for part in range(SHARD // 64):
        seed = f"{SEED}/{split}/{number}/{part}"
        draw = torch.Generator().manual_seed(SEED * 1_000_000 + number * 1000 + part)
        uniform = torch.randint(0, 1000, (64,), generator=draw)
        timesteps = uniform if at is None else torch.full((64,), at)
        parts.append(predict(pipeline, sample_pairs(64, seed, split, kinds), timesteps, draw))
    return join(parts)


def join(parts: list[Predictions]) -> Predictions:
    """All pairs of several predictions, in order."""
    return Predictions(
        captions=[text for part in parts for text in part.captions],
        first=torch.cat([part.first for part in parts]),
        second=torch.cat([part.second for part in parts]),
        label=torch.cat([part.label for part in parts]),
        timesteps=torch.cat([part.timesteps for part in parts]),
    )


def prediction_set(pipeline: StableDiffusionPipeline, shards: int, folder: Path) -> Predictions:
    """The training pairs: `shards` files, those already on disk kept."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, started = [], time.time()
    for number in range(shards):
        path = folder / f"{number:04d}.pt"
        if not path.exists():
            torch.save(vars(predictions(pipeline, number, "train")), path)
            print(f"predictions {number + 1}/{shards} {time.time() - started:.0f}s", flush=True)
        parts.append(Predictions(**torch.load(path, weights_only=True)))
    return join(parts)


def to_float(stored: Tensor) -> Tensor:
    """8-bit pictures to [-1, 1]."""
    return stored.float() / 127.5 - 1


def train_clean(clip: CLIPModel, tokenizer: CLIPTokenizer, total_steps: int, state: Path) -> None:
    """Phase 1. Loss: the pair's cross-entropy + symmetric InfoNCE between the preferred pictures and their captions."""
    optimiser = torch.optim.AdamW(clip.parameters(), lr=RATE_CLEAN, betas=(0.9, 0.98), weight_decay=0.05)
    first, started = load_state(state, clip=clip, optimiser=optimiser), time.time()
    print(f"clean: {parameter_count(clip)} parameters; from step {first} to {total_steps}", flush=True)
    for step in range(first, total_steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, RATE_CLEAN, 100, total_steps)
        pairs = sample_pairs(PAIRS_PER_STEP, f"{SEED}/clean/{step}")
        draw = torch.Generator().manual_seed(SEED + step)
        pixels = clip_pixels(vary(torch.cat([pairs.first, pairs.second]), draw), 64)
        with torch.autocast("cpu", torch.bfloat16):
            images = clip.get_image_features(pixels)
            texts = clip.get_text_features(tokenise(tokenizer, pairs.captions))
        images, texts = unit(features(images)), unit(features(texts))
        similarity = clip.logit_scale.exp() * images @ texts.T  # [2T, T]
        score_a, score_b = similarity.chunk(2)
        own_a, own_b = score_a.diagonal(), score_b.diagonal()
        loss = preference_loss(own_a, own_b, pairs.label, 1 - pairs.label, torch.ones(PAIRS_PER_STEP))
        chosen = torch.where((pairs.label > 0.5)[:, None], score_a, score_b)
        target = torch.arange(PAIRS_PER_STEP)
        contrast = (F.cross_entropy(chosen, target) + F.cross_entropy(chosen.T, target)) / 2
        optimiser.zero_grad()
        (loss + contrast).backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0 or step + 1 == total_steps:
            save_state(state, step + 1, clip=clip, optimiser=optimiser)
            elapsed = time.time() - started
            print(f"clean {step + 1} pair {loss.item():.3f} caption {contrast.item():.3f} {elapsed:.0f}s", flush=True)


def features(output: Any) -> Tensor:
    """CLIP's projected features, whether this version of transformers returns them bare or wrapped."""
    return output if isinstance(output, Tensor) else output.pooler_output


def train_step_aware(
    model: StepAwarePreferenceModel, data: Predictions, tokens: Tensor, total_steps: int, state: Path
) -> None:
    """Phase 3: cross-entropy of the text over its two predicted pictures, read at their timestep (arXiv:2406.04314)."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    first, started = load_state(state, model=model, optimiser=optimiser), time.time()
    print(f"step: {parameter_count(model)} parameters, {len(tokens)} pairs; from {first} to {total_steps}", flush=True)
    model.train()
    for step in range(first, total_steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, RATE, 100, total_steps)
        draw = torch.Generator().manual_seed(SEED + step)
        rows = torch.randint(0, len(tokens), (PAIRS_PER_STEP,), generator=draw)
        images = vary(to_float(torch.cat([data.first[rows], data.second[rows]])), draw)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model.score(images, tokens[rows].repeat(2, 1), data.timesteps[rows].repeat(2))
        score_a, score_b = scores.chunk(2)
        label = data.label[rows]
        loss = preference_loss(score_a, score_b, label, 1 - label, torch.ones(PAIRS_PER_STEP))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0 or step + 1 == total_steps:
            save_state(state, step + 1, model=model, optimiser=optimiser)
            print(f"step {step + 1} loss {loss.item():.3f} {time.time() - started:.0f}s", flush=True)
    model.eval()


@torch.no_grad()
def accuracies(model: StepAwarePreferenceModel, pipeline: StableDiffusionPipeline) -> dict[str, dict[int, float]]:
    """{kind: {timestep: share of 512 held-out pairs whose preferred picture scores higher}}, finish and caption."""
    found: dict[str, dict[int, float]] = {}
    for kind in ("finish", "caption"):
        for at in ACCURACY_AT:
            data = predictions(pipeline, 0, "heldout", {kind: 1.0}, at)
            tokens = tokenise(pipeline.tokenizer, data.captions)
            score_a = model.score(to_float(data.first), tokens, data.timesteps)
            score_b = model.score(to_float(data.second), tokens, data.timesteps)
            right = torch.where(data.label == 1, score_a > score_b, score_b > score_a)
            found.setdefault(kind, {})[at] = right.float().mean().item()
    return found


def write_preference_model(model: StepAwarePreferenceModel, folder: Path) -> None:
    """CLIP's config, the tokenizer, and the float16 step-aware weights."""
    partial = folder.with_name(folder.name + ".partial")
    write_tokenizer(partial)
    model.model.config.save_pretrained(partial)
    model.half().save_checkpoint(partial / "step_aware.safetensors")
    model.float()
    replace_folder(partial, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean-steps", type=int, default=CLEAN_STEPS)
    parser.add_argument("--shards", type=int, default=SHARDS, help=f"files of {SHARD} predicted pairs")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only-clean", action="store_true", help="stop after phase 1")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    tokenizer = write_tokenizer(WORK / "tokenizer")
    clip = build_clip(tokenizer)
    train_clean(clip, tokenizer, options.clean_steps, WORK / "clip.pt")
    clip.save_pretrained(WORK / "clip")
    write_tokenizer(WORK / "clip")
    if options.only_clean:
        return
    pipeline = StableDiffusionPipeline.from_pretrained(SHIPPED / "pipeline", torch_dtype=torch.float32)
    data = prediction_set(pipeline, options.shards, WORK / "predictions")
    model = StepAwarePreferenceModel(clip)
    train_step_aware(model, data, tokenise(tokenizer, data.captions), options.steps, WORK / "step_aware.pt")
    write_preference_model(model, SHIPPED / "spm")


if __name__ == "__main__":
    main()
