"""Finished latents, for losses on denoising errors: SimPO, Diffusion-DPO and MaPO on pairs, SFT on single ones.

    z ─ noise, t (one draw a pair) ─► z_t ─► network ─► predicted noise ─┬─► latent error A ─► objective ─┐
                                          (one evaluation, both halves)  └─ decoded ─► P ─► objective ────┴─► loss

The network is asked for the caption's own prediction, without guidance, as these losses are defined; pairs are cut
into micro-batches by `learner.micro_batch_pairs` and decoded picture by picture. Shapes: M pairs (or pictures) of a
micro-batch, H halves of each (2, or 1), C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.objectives import PixelSection
from learner.batching import PairIndex
from learner.noising import draw_noise
from learner.objectives.pixel import Reduction, combine, latents_to_decode, squared_error
from learner.readers.base import Losses, Setting, refuse_other_groups
from rollout.conditioning import Conditioning
from rollout.final_records import FinalGroup
from rollout.transition import add_noise, predicted_noise


@dataclass(frozen=True)
class FinalBatch:
    """M pairs, or pictures, as rows of one forward pass."""

    z: Tensor
    """float32 [H, M, C, H, W]: winners, then losers where the objective compares."""
    noise: Tensor
    """float32 [M, C, H, W], shared by both halves."""
    timestep: Tensor
    """int64 [M], shared by both halves."""
    conditioning: Conditioning
    """M rows."""
    weight: Tensor
    """float32 [M]: 1, or 0 for padding."""
    sources: tuple[str, ...]
    """Prompt and seed of each row, for messages."""


class FinalLatentReader:
    """Reads `FinalGroup`s; `halves` is 2 for losses on pairs, 1 for losses on the winner (or the only one) alone."""

    def __init__(self, setting: Setting, halves: int) -> None:
        chosen = setting.settings.objective
        self._setting = setting
        self._policy = setting.policy
        self._objective = setting.objective
        self._pixel = setting.pixel
        self._halves = halves
        self._reduction: Reduction = getattr(chosen, "reduction", "mean")
        self._name = chosen.type

    def collate(self, groups: Sequence[FinalGroup], pairs: Sequence[PairIndex], step: int) -> FinalBatch:
        """Raises ValueError for groups of another kind, and for single pictures where the objective compares."""
        refuse_other_groups(groups, FinalGroup, self._name)
        device = self._policy.device
        if not pairs:
            row = torch.zeros((1, *groups[0].latent_shape), device=device)
            return FinalBatch(
                z=torch.stack([row] * self._halves),
                noise=row,
                timestep=torch.zeros(1, dtype=torch.int64, device=device),
                conditioning=Conditioning.from_rows([groups[0].conditioning]).to(device),
                weight=torch.zeros(1, device=device),
                sources=("padding",),
            )
        chosen = [groups[place] for place, _ in pairs]
        timesteps = len(self._policy.schedule.alphas_cumprod)
        drawn = [
            draw_noise(self._setting.seed, step, group.ordinal, pair, group.latent_shape, timesteps)
            for group, (_, pair) in zip(chosen, pairs, strict=True)
        ]
        sides = [[self._half(group, half)[pair] for group, (_, pair) in zip(chosen, pairs, strict=True)]
                 for half in range(self._halves)]  # fmt: skip
        return FinalBatch(
            z=torch.stack([torch.stack(side) for side in sides]).to(device),
            noise=torch.stack([noise for _, noise in drawn]).to(device),
            timestep=torch.tensor([t for t, _ in drawn], dtype=torch.int64, device=device),
            conditioning=Conditioning.from_rows([group.conditioning for group in chosen]).to(device),
            weight=torch.ones(len(pairs), device=device),
            sources=tuple(f"{group.prompt!r} (seed {group.seed})" for group in chosen),
        )

    def _half(self, group: FinalGroup, half: int) -> Tensor:
        if half == 0:
            return group.z_win
        if group.z_lose is None:
            raise ValueError(
                f"group {group.ordinal} of {group.worker} holds single pictures; learner.objective.type = "
                f"{self._name} compares two. Use a source of pairs, or the objective sft."
            )
        return group.z_lose

    def evaluate(self, batch: FinalBatch, network: nn.Module) -> Losses:
        latent, pixel = self._errors(batch, network)
        if self._setting.settings.reference_side is not None:
            with torch.no_grad(), self._policy.reference():
                ref_latent, ref_pixel = self._errors(batch, None)
            latent, pixel = (*latent, *ref_latent), (*pixel, *ref_pixel)
        losses, metrics = self._objective(*latent)
        if self._pixel is not None:
            pixel_losses, pixel_metrics = self._objective(*pixel)
            metrics |= {f"pixel/{name}": value for name, value in pixel_metrics.items()}
            metrics |= {"loss/latent": losses.detach(), "loss/pixel": pixel_losses.detach()}
            weights = {"weight": self._pixel.weight, "latent_weight": self._pixel.latent_weight}
            losses = combine(losses, pixel_losses, **weights)
        return Losses(losses, metrics, sum(latent[1 : self._halves], start=latent[0]))

    def _errors(self, batch: FinalBatch, network: nn.Module | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Latent errors, and pixel errors where the term is on: one [M] a half. One evaluation of H M rows."""
        schedule, halves = self._policy.schedule, self._halves
        z, noise = batch.z.flatten(0, 1), batch.noise.repeat(halves, 1, 1, 1)
        t = batch.timestep.repeat(halves)
        conditioning = Conditioning.concatenate([batch.conditioning] * halves)
        z_t = add_noise(schedule, z, noise, t)
        output = self._policy.predict(z_t, t, conditioning, network=network, guidance=1.0)
        predicted = predicted_noise(schedule, output, z_t, t)
        latent = squared_error(noise, predicted, self._reduction).chunk(halves)
        if self._pixel is None:
            return latent, ()
        return latent, self._pixel_errors(self._pixel, z, noise, predicted, t).chunk(halves)

    def _pixel_errors(self, pixel: PixelSection, z: Tensor, noise: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        decoder = self._setting.decoder
        assert decoder is not None
        alpha = self._policy.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        target, prediction = latents_to_decode(z, noise, predicted, alpha, pixel.decode)
        with torch.no_grad():
            wanted = decoder.decode(target)
        return squared_error(wanted, decoder.decode(prediction), self._reduction)
