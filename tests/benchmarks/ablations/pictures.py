"""What is measured on a cell's pictures: by the judge, by appearance and diversity, and by their spectrum.

Nothing here is what a cell is trained for. Shapes: N pictures, R = 32 radial bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from configs.learner import EvaluationSection
from reward.appearance import HIGH_FREQUENCY_FROM, luma
from reward.diversity import pixel_embedding
from rollout.drift import picture_statistics
from rollout.evaluator import to_uint8
from rollout.measures import judge_measure
from rollout.miniature.judge import Judge, compare
from rollout.miniature.world import PIXELS, parse_caption, render
from rollout.policy import DiffusionPolicy
from rollout.prompts import evaluation_prompts
from rollout.sampling import sample_latents
from tests.benchmarks.ablations.cells import PICTURES_PER_CAPTION, Shown

BATCH = 32
RADII = 32
KEPT = ("judge/crisp", "judge/caption", "judge/both", "flaws/content")
"""Measures whose value is kept picture by picture, for paired intervals."""


def captions(shown: Shown) -> list[str]:
    """One a picture: those of the points on the way once and once more, then the others."""
    last = shown.first_caption + shown.captions
    texts = list(evaluation_prompts(EvaluationSection(num_prompts=last)))[shown.first_caption :]
    early, late = texts[: shown.on_the_way], texts[shown.on_the_way :]
    return early * PICTURES_PER_CAPTION + late * PICTURES_PER_CAPTION


@torch.no_grad()
def draw(policy: DiffusionPolicy, shown: Shown, count: int) -> Tensor:
    """The first `count` pictures [N, 3, H, W] of `captions(shown)`, rounded to 8 bits."""
    prompts = captions(shown)[:count]
    drawn = []
    for first in range(0, count, BATCH):
        texts = prompts[first : first + BATCH]
        seeds = range(shown.first_seed + first, shown.first_seed + first + len(texts))
        drawn.append(rounded(policy.decode(sample_latents(policy, policy.encode(texts), seeds))))
    return torch.cat(drawn)


def describe(images: Tensor, shown: Shown) -> dict[str, Any]:
    """Of the first pictures of `shown`: metrics (means), the values of KEPT picture by picture, radial spectrum."""
    prompts = captions(shown)[: len(images)]
    found = {**judge_measure()(images, prompts), **flaw_measure(images, prompts)}
    found["judge/both"] = found["judge/crisp"] * found["judge/caption"]
    power = spectrum(images)
    looks = picture_statistics(to_uint8(images), prompts, pixel_embedding, BATCH)
    detail = {"detail/energy": high_energy(power) / high_energy(spectrum(crisp_renders(shown)[: len(images)]))}
    metrics = {**{name: float(values.mean()) for name, values in found.items()}, **looks, **detail}
    return {
        "metrics": {name: float(f"{value:.6g}") for name, value in sorted(metrics.items())},
        "per_picture": {name: "".join(str(int(value)) for value in found[name]) for name in KEPT},
        "spectrum": [float(f"{value:.4g}") for value in power.tolist()],
    }


def flaw_measure(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """By the judge, float32 [N] each: `flaws/content` is 1 where any of the five attributes is wrong, and
    `flaws/unexplained` the share of the picture's energy that no object of the world accounts for."""
    readings = _judge().read(images)
    wrong = [not compare(seen, parse_caption(text))["all"] for seen, text in zip(readings, prompts, strict=True)]
    return {
        "flaws/content": torch.tensor(wrong, dtype=torch.float32),
        "flaws/unexplained": torch.tensor([seen.unexplained for seen in readings]),
    }


def spectrum(images: Tensor) -> Tensor:
    """Power of the luma by radial frequency, mean over pictures [N, 3, H, W] in [-1, 1]: float32 [R], 0 to 0.5 cycles
    per pixel; under a Hann window, as in `reward.appearance.high_frequency`."""
    y = luma((images / 2 + 0.5).clamp(0, 1))
    window = torch.hann_window(PIXELS, periodic=True)
    centred = y - y.mean(dim=(1, 2), keepdim=True)
    power = torch.fft.fft2(centred * window[:, None] * window[None, :]).abs().square().mean(0)
    axis = torch.fft.fftfreq(PIXELS)
    bins = (torch.hypot(axis[:, None], axis[None, :]) * 2 * RADII).long().flatten()
    inside = bins < RADII
    sums = torch.zeros(RADII).scatter_add_(0, bins[inside], power.flatten()[inside])
    return sums / torch.bincount(bins[inside], minlength=RADII)


def high_energy(power: Tensor) -> float:
    """Energy above half of an axis' highest frequency, from a radial spectrum [R]: bins weighted by their size."""
    first = int(HIGH_FREQUENCY_FROM * 2 * RADII)
    return float((power * torch.arange(RADII))[first:].sum())


@cache
def crisp_renders(shown: Shown) -> Tensor:
    """Crisp renders [N, 3, H, W] of `captions(shown)`, rounded to 8 bits as the cells' pictures are."""
    prompts = captions(shown)
    noise = torch.Generator().manual_seed(shown.first_seed)
    return rounded(render([parse_caption(text) for text in prompts], ["crisp"] * len(prompts), noise))


def rounded(images: Tensor) -> Tensor:
    """To 8 bits and back: [-1, 1], as a picture's file would have it."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@cache
def _judge() -> Judge:
    return Judge()
