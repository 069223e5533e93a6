"""Noise and timestep of finished latents: drawn for each pair from the run's seed, the step, and the pair's place.

Nothing global is read, so that neither resuming nor the number of ranks nor the micro-batch changes what a pair gets.
Shapes: C H W latent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def draw_noise(
    seed: int, step: int, ordinal: int, pair: int, latent_shape: Sequence[int], num_timesteps: int
) -> tuple[int, Tensor]:
    """A timestep, uniform over 0 .. num_timesteps - 1, and standard normal noise float32 [C, H, W] on the CPU.

    Both halves of a pair share the two. `step` is the optimiser step before the update, counted from 0.
    """
    generator = generator_of(f"final/{seed}/{step}/{ordinal}/{pair}")
    timestep = int(torch.randint(num_timesteps, (), generator=generator))
    return timestep, torch.randn(tuple(latent_shape), generator=generator)


def generator_of(text: str) -> torch.Generator:
    """A generator on the CPU, seeded by a hash of the text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)  # it takes 63 bits
