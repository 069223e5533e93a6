"""What is measured on a cell's pictures: by the judge, by appearance and diversity, and by their spectrum.

Nothing here is what a cell is trained for. Shapes: N pictures, R = 32 radial bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from configs.learner import EvaluationSection
from reward.appearance import HIGH_FREQUENCY_FROM, luma
from reward.base import Scorer
from reward.diversity import pixel_embedding
from rollout.drift import picture_statistics
from rollout.evaluator import evaluate, evaluation_prompts
from rollout.measures import judge_measure
from rollout.miniature.judge import Judge, compare
from rollout.miniature.world import PIXELS, parse_caption, render
from rollout.policy import DiffusionPolicy
from tests.benchmarks.ablations.cells import FIRST_SEED, PICTURES_PER_PROMPT

BATCH = 32
RADII = 32
KEPT = ("judge/crisp", "judge/caption", "flaws/content")
"""Measures whose value is kept picture by picture, for paired intervals."""


def captions(count: int) -> list[str]:
    """The first `count` held-out captions: all of them once, then again for the second picture of each."""
    return list(evaluation_prompts(EvaluationSection(num_prompts=count))) * PICTURES_PER_PROMPT


def measure(policy: DiffusionPolicy, scorer: Scorer, count: int) -> dict:
    """Of pictures of `captions(count)`: metrics (means), the values of KEPT picture by picture, radial spectrum."""
    prompts = captions(count)
    seeds = range(FIRST_SEED, FIRST_SEED + len(prompts))
    found = evaluate(policy, scorer, prompts, seeds, [judge_measure(), flaw_measure], BATCH)
    power = spectrum(torch.from_numpy(found.images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    statistics = picture_statistics(found.images, prompts, pixel_embedding, BATCH)
    detail = {"detail/energy": high_energy(power) / high_energy(spectrum(crisp_renders(count)))}
    metrics = {**found.metrics, **statistics, **detail}
    return {
        "metrics": {name: float(f"{value:.6g}") for name, value in sorted(metrics.items())},
        "per_picture": {name: "".join(str(int(value)) for value in found.per_picture[name]) for name in KEPT},
        "spectrum": [float(f"{value:.4g}") for value in power.tolist()],
        "scorer": scorer.name,
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
def crisp_renders(count: int) -> Tensor:
    """Crisp renders [N, 3, H, W] of `captions(count)`, rounded to 8 bits as the cells' pictures are."""
    prompts = captions(count)
    draw = torch.Generator().manual_seed(FIRST_SEED)
    pictures = render([parse_caption(text) for text in prompts], ["crisp"] * len(prompts), draw)
    return ((pictures + 1) * 127.5).round() / 127.5 - 1


@cache
def _judge() -> Judge:
    return Judge()
