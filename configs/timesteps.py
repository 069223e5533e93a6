"""The denoising schedule in whole numbers, as far as a configuration can be checked without torch.

The sampler walks `leading` spacing with offset 1: t = i * (1000 // N) + 1 for i = N-1 .. 0. With N = 20 that is
951, 901, .. 1. Each step goes to t' = t - 1000 // N, clamped to 0.
"""

from __future__ import annotations

TRAINING_TIMESTEPS = 1000
"""Timesteps that Stable Diffusion's noise schedules are trained on."""


def step_targets(num_steps: int) -> list[int]:
    """t' of every step, descending."""
    stride = TRAINING_TIMESTEPS // num_steps
    return [max(index * stride + 1 - stride, 0) for index in reversed(range(num_steps))]


def candidate_targets(num_steps: int, kappa: int, min_timestep: int) -> list[int]:
    """t' of the steps that draw candidates: min_timestep <= t' <= kappa."""
    return [target for target in step_targets(num_steps) if min_timestep <= target <= kappa]
