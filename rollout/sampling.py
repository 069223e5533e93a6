"""Plain stochastic sampling from prompts and seeds: what evaluation shows, and the noise that every sampler draws.

Noise comes from one CPU generator a prompt, so a picture depends on its seed alone, not on its neighbours in a batch.
Shapes: B prompts, C H W latent, h w pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from rollout.conditioning import Conditioning
from rollout.policy import DiffusionPolicy
from rollout.transition import transition


class PromptNoise:
    """Standard normal noise for a batch of prompts, each row from its own generator."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = device

    def draw(self, count: int | None = None) -> Tensor:
        """float32 [B, C, H, W], or [B, count, C, H, W]."""
        shape = self._shape if count is None else (count, *self._shape)
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators]).to(self._device)

    def integers(self, high: int) -> list[int]:
        """One integer in [0, high) for each prompt."""
        return [int(torch.randint(high, (), generator=generator)) for generator in self.generators]


def picture_seed(seed: int, number: int) -> int:
    """Seed of a prompt's n-th picture: a hash, so that neighbouring prompts share none."""
    digest = hashlib.blake2b(f"picture/{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch.Generator takes 63 bits


@torch.no_grad()
def sample_latents(policy: DiffusionPolicy, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
    """Finished latents float32 [B, C, H, W] of one stochastic pass over the whole schedule."""
    noise = PromptNoise(seeds, policy.latent_shape, policy.device)
    x = noise.draw()
    for step in policy.schedule.timesteps.tolist():
        t = torch.full((len(x),), step, dtype=torch.int64, device=policy.device)
        output = policy.predict(x, t, conditioning)
        x = transition(policy.schedule, output, x, t).sample(noise.draw())
    return x


@torch.no_grad()
def sample_images(
    policy: DiffusionPolicy, prompts: Sequence[str], seeds: Sequence[int], *, batch_size: int = 16
) -> Tensor:
    """Pictures float32 [B, 3, h, w] in [-1, 1] on the CPU, one for each prompt and seed."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed a prompt")
    images = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        latents = sample_latents(policy, policy.encode(prompts[part]), seeds[part])
        images.append(policy.decode(latents).cpu())
    return torch.cat(images)
