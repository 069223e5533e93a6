"""Pairs of denoising steps, for losses on log-probabilities: SPO, MSPO and D3PO.

    pairs ─► means of policy and reference ─► log p ─► objective       (one evaluation where both halves share x_t)
                                        └─ decoded ─► log P ─► objective       (the pixel term, where it is on)

Shapes: M rows of a micro-batch, C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from configs.objectives import PixelSection
from learner.batching import PairBatch, PairIndex, collate
from learner.objectives.pixel import combine, implied_x0, pixel_log_density
from learner.readers.base import Losses, Setting, refuse_other_groups
from rollout.conditioning import Conditioning
from rollout.policy import DiffusionPolicy
from rollout.records import PreferenceGroup
from rollout.transition import log_prob, transition

Halves = tuple[Tensor, Tensor]


class StepPairReader:
    """Reads `PreferenceGroup`s."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._policy = setting.policy
        self._objective = setting.objective
        self._pixel = setting.pixel

    def collate(self, groups: Sequence[PreferenceGroup], pairs: Sequence[PairIndex], step: int) -> PairBatch:
        refuse_other_groups(groups, PreferenceGroup, self._setting.settings.objective.type)
        policy = self._policy
        return collate(groups, pairs, policy.device, int(policy.schedule.trained_timesteps[-1]))

    def evaluate(self, batch: PairBatch, network: nn.Module) -> Losses:
        means = pair_means(self._policy, batch, network)
        win, lose = pair_log_probs(self._policy, batch, means)
        with torch.no_grad():
            ref_means = self._reference_means(batch)
            ref_win, ref_lose = pair_log_probs(self._policy, batch, ref_means)
        losses, metrics = self._objective(win, lose, ref_win, ref_lose)
        if self._pixel is not None:
            pixel_losses, pixel_metrics = self._pixel_losses(self._pixel, batch, means, ref_means)
            weights = {"weight": self._pixel.weight, "latent_weight": self._pixel.latent_weight}
            metrics |= {f"pixel/{name}": value for name, value in pixel_metrics.items()}
            metrics |= {"loss/latent": losses.detach(), "loss/pixel": pixel_losses.detach()}
            losses = combine(losses, pixel_losses, **weights)
        return Losses(losses, metrics, win + lose)

    def _reference_means(self, batch: PairBatch) -> Halves:
        if self._setting.settings.reference_side == "learner":
            with self._policy.reference():
                return pair_means(self._policy, batch)
        if batch.ref_mean_win is None:
            raise ValueError("groups came without reference means although learner.reference_at is worker")
        return batch.ref_mean_win, batch.ref_mean_win if batch.ref_mean_lose is None else batch.ref_mean_lose

    def _pixel_losses(
        self, pixel: PixelSection, batch: PairBatch, means: Halves, ref_means: Halves
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same loss on log densities of decoded pictures: see `learner.objectives.pixel`."""
        decoder = self._setting.decoder
        assert decoder is not None
        lose_x_t = batch.x_t if batch.x_t_lose is None else batch.x_t_lose
        sides = ((batch.x_t, batch.x_prev_win), (lose_x_t, batch.x_prev_lose))
        policy_side, reference_side = [], []
        for place, (x_t, x_prev) in enumerate(sides):
            readable, sigma = self._readable(pixel, batch, x_t, x_prev)
            with torch.no_grad():
                target = decoder.decode(readable)
                reference = decoder.decode(self._readable(pixel, batch, x_t, ref_means[place])[0])
                reference_side.append(pixel_log_density(target, reference, sigma))
            mean = decoder.decode(self._readable(pixel, batch, x_t, means[place])[0])
            policy_side.append(pixel_log_density(target, mean, sigma))
        return self._objective(*policy_side, *reference_side)

    def _readable(self, pixel: PixelSection, batch: PairBatch, x_t: Tensor, landed: Tensor) -> tuple[Tensor, Tensor]:
        """The latent to decode for a step that lands at `landed`, and the Gaussian's width there [M]."""
        schedule, t = self._policy.schedule, batch.timestep
        sigma = schedule.sigma(t)
        if pixel.decode == "present":
            return landed, sigma
        table = schedule.alphas_cumprod
        alpha, alpha_prev = (table[at].reshape(-1, 1, 1, 1) for at in (t, schedule.next_timestep(t)))
        x0, factor = implied_x0(landed, x_t, alpha, alpha_prev, sigma.reshape(-1, 1, 1, 1))
        return x0, sigma / factor.flatten().abs()


def pair_means(policy: DiffusionPolicy, batch: PairBatch, network: nn.Module | None = None) -> Halves:
    """Means [M, C, H, W] of winner's and loser's transition: one evaluation of M rows, or of 2 M where x_t differs."""
    x, t, conditioning = batch.x_t, batch.timestep, batch.conditioning
    if batch.x_t_lose is not None:
        x, t = torch.cat([x, batch.x_t_lose]), torch.cat([t, t])
        conditioning = Conditioning.concatenate([conditioning, conditioning])
    output = policy.predict(x, t, conditioning, network=network)
    mean = transition(policy.schedule, output, x, t).mean
    if batch.x_t_lose is None:
        return mean, mean
    win, lose = mean.chunk(2)
    return win, lose


def pair_log_probs(policy: DiffusionPolicy, batch: PairBatch, means: Halves) -> Halves:
    """log p [M] of winner and loser under Gaussians of these means."""
    std = policy.schedule.sigma(batch.timestep).reshape(-1, 1, 1, 1)
    return log_prob(batch.x_prev_win, means[0], std), log_prob(batch.x_prev_lose, means[1], std)
