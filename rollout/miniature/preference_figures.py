"""How well the miniature's preference model orders held-out pairs, and what moves its score.

Pairs are shown as a sampler shows them: both latents noised alike, x0 predicted by the base U-Net with guidance 5,
decoded, clamped. Written apart from `learner.preference`, which trains on such predictions.

T pairs; pictures [T, 3, 64, 64] in [-1, 1]; latents [T, 8, 16, 16]; timesteps int64 [T].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from reward.step_aware import StepAwarePreferenceModel
from rollout.miniature.preference_data import Pairs, sample_pairs
from rollout.miniature.train_denoiser import tokenise
from rollout.miniature.training import low_precision

SEED = 303
GUIDANCE = 5.0
PAIRS, PART = 512, 64  # measured on at each timestep; predicted together
ACCURACY_AT = (0, 251, 501, 701, 951)  # timesteps
TINT = 0.02  # standard deviation of one offset a channel, pictures in [-1, 1]
TINT_SEED, TINT_AT = 404, (0, 501)


@dataclass(frozen=True)
class Predicted:
    """T pairs after noising and prediction at one timestep; label [T] of the first: 1 it wins, 0 it loses."""

    first: Tensor
    second: Tensor
    label: Tensor
    tokens: Tensor
    timesteps: Tensor


@torch.no_grad()
def predict(pipeline: StableDiffusionPipeline, pairs: Pairs, timesteps: Tensor, draw: torch.Generator) -> Predicted:
    """x0 predictions of both pictures of every pair, from the same noise, as a sampler shows them at `timesteps`."""
    vae, alphas = pipeline.vae, pipeline.scheduler.alphas_cumprod
    count = len(timesteps)
    with low_precision():
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
    return Predicted(images[:count], images[count:], pairs.label, tokens[:-1], timesteps)


def heldout_pairs(pipeline: StableDiffusionPipeline, kind: str, at: int) -> Iterator[Predicted]:
    """PAIRS held-out pairs of one kind (`preference_data.KINDS`), PART at a time; the same ones at every timestep."""
    for part in range(PAIRS // PART):
        pairs = sample_pairs(PART, f"{SEED}/heldout/0/{part}", "heldout", {kind: 1.0})
        draw = torch.Generator().manual_seed(SEED * 1_000_000 + part)
        yield predict(pipeline, pairs, torch.full((PART,), at), draw)


@torch.no_grad()
def accuracies(model: StepAwarePreferenceModel, pipeline: StableDiffusionPipeline) -> dict[str, dict[int, float]]:
    """{kind: {timestep: share of PAIRS held-out pairs whose preferred picture scores higher}}, finish and caption."""
    found: dict[str, dict[int, float]] = {}
    for kind in ("finish", "caption"):
        for at in ACCURACY_AT:
            right = 0
            for pairs in heldout_pairs(pipeline, kind, at):
                first = model.score(pairs.first, pairs.tokens, pairs.timesteps)
                second = model.score(pairs.second, pairs.tokens, pairs.timesteps)
                right += int(torch.where(pairs.label == 1, first > second, second > first).sum())
            found.setdefault(kind, {})[at] = right / PAIRS
    return found


@torch.no_grad()
def score_changes(model: StepAwarePreferenceModel, pipeline: StableDiffusionPipeline) -> dict[str, dict[int, float]]:
    """{"tint": {t: ..}, "finish": {t: ..}} on held-out pairs predicted at t: by how much a tint moves a score (mean
    absolute change; one normal offset of deviation TINT a channel), and by how much crisp outscores soft or hatched."""
    found: dict[str, dict[int, float]] = {"tint": {}, "finish": {}}
    for at in TINT_AT:
        draw = torch.Generator().manual_seed(TINT_SEED)
        tint = finish = 0.0
        for pairs in heldout_pairs(pipeline, "finish", at):
            tinted = pairs.first + TINT * torch.randn(PART, 3, 1, 1, generator=draw)
            plain, other, moved = (
                model.score(x, pairs.tokens, pairs.timesteps) for x in (pairs.first, pairs.second, tinted)
            )
            tint += (moved - plain).abs().sum().item()
            finish += torch.where(pairs.label == 1, plain - other, other - plain).sum().item()
        found["tint"][at], found["finish"][at] = tint / PAIRS, finish / PAIRS
    return found


def preference_figures(pipeline: StableDiffusionPipeline, model: StepAwarePreferenceModel) -> dict[str, Any]:
    """Accuracies by kind of pair and timestep, and what moves the score."""
    return {"preference": accuracies(model, pipeline), "score": score_changes(model, pipeline)}
