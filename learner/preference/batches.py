"""From rows to what the preference model reads: both pictures noised alike and predicted back by the frozen base.

    two pictures ─ VAE ─► z ─ same noise, same t ─► z_t ─ guided network ─► x0-hat ─ decode, clamp ─► [-1, 1]

(arXiv:2406.04314, training of the step-aware preference model.) Noise, timestep and augmentation belong to a row's
position in the run's order, so that neither the number of ranks nor resuming changes them.
Shapes: B pairs, C H W latent, h w pixels, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from configs.model import ModelSection, NoiseSection
from configs.spm import LabelsSection, SpmConfig
from learner.datasets.images import decode_image, to_pixels
from learner.datasets.rows import DataError, PairRow
from learner.noising import draw_noise, generator_of
from reward.augmentation import vary
from reward.step_aware import StepAwarePreferenceModel
from reward.step_aware_scorer import tokenize
from rollout.policy import DiffusionPolicy, load_policy
from rollout.transition import add_noise, predict_x0


@dataclass(frozen=True)
class PairTensors:
    """B pairs, ready for the preference model, on the training device."""

    images_0: Tensor  # float32 [B, 3, h, w] in [-1, 1], predicted at `timesteps`
    images_1: Tensor
    timesteps: Tensor  # int64 [B], what the model is told
    input_ids: Tensor  # int64 [B, L]
    label_0: Tensor  # float32 [B]
    label_1: Tensor
    weights: Tensor  # float32 [B]


class PairBatches:
    """The frozen diffusion model, the tokenizer, and what turns rows into tensors."""

    def __init__(
        self,
        config: SpmConfig,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        labeller: StepAwarePreferenceModel | None = None,
    ) -> None:
        """`labeller`: the starting model, where `labels.by` is `scorer`; frozen here."""
        base = config.base
        model = ModelSection(
            family=base.family, pretrained=base.pretrained, vae=base.vae, dtype=base.dtype, image_size=base.image_size
        )
        noise = NoiseSection(guidance_scale=base.guidance_scale, negative_prompt=base.negative_prompt)
        self.policy: DiffusionPolicy = load_policy(model, noise, device, seed=config.run.seed)
        self.policy.network.requires_grad_(False)
        self._device, self._tokenizer = device, tokenizer
        self._labels: LabelsSection = config.labels
        self._labeller = None if labeller is None else labeller.eval().requires_grad_(False)
        self._seed, self._reads_time = config.run.seed, config.scorer.ablation == "none"
        self._augmentation = config.training.augmentation
        self._size = base.image_size or _native_size(self.policy)

    @torch.no_grad()
    def make(self, rows: Sequence[PairRow], positions: Sequence[int], timestep: int | None = None) -> PairTensors:
        """Tensors of rows at these positions of the order.

        timestep: the same for every pair, where 0 is the clean picture itself, and nothing augmented; unset, uniform
            over the model's training timesteps.

        Raises DataError, naming file and row, for a picture that cannot be read or a caption that cannot be tokenised.
        """
        clean = torch.stack([self._pixels(row, side) for side in (0, 1) for row in rows]).to(self._device)
        times, noise = self._draw(positions, timestep)
        shown = clean if timestep == 0 else self._predicted(rows, clean, times, noise)
        if timestep is None:
            shown = self._augmented(shown, positions)
        images_0, images_1 = shown.chunk(2)
        input_ids = torch.cat([self._tokens(row) for row in rows]).to(self._device)
        label_0, label_1 = self._label(rows, clean, input_ids)
        weights = torch.tensor([row.weight for row in rows], dtype=torch.float32, device=self._device)
        told = times if self._reads_time else torch.zeros_like(times)
        return PairTensors(images_0, images_1, told, input_ids, label_0, label_1, weights)

    def _predicted(self, rows: Sequence[PairRow], clean: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """What the base predicts of pictures [2 B, 3, h, w], first and second of each pair noised alike."""
        policy, both_times = self.policy, times.repeat(2)
        noised = add_noise(policy.schedule, policy.encode_images(clean), noise.repeat(2, 1, 1, 1), both_times)
        with policy.reference():
            conditioning = policy.encode([row.caption for row in rows] * 2).to(self._device)
            output = policy.predict(noised, both_times, conditioning)
        return policy.decode(predict_x0(policy.schedule, output, noised, both_times))

    def _augmented(self, shown: Tensor, positions: Sequence[int]) -> Tensor:
        """Pictures [2 B, 3, h, w], each with draws of its own."""
        contrast, noise = self._augmentation.contrast, self._augmentation.noise
        if contrast == 0 and not noise:
            return shown
        names = [f"augmentation/{self._seed}/{position}/{side}" for side in (0, 1) for position in positions]
        pictures = zip(shown.split(1), map(generator_of, names), strict=True)
        return torch.cat([vary(picture, draw, contrast=contrast, noise=noise) for picture, draw in pictures])

    def _pixels(self, row: PairRow, side: int) -> Tensor:
        data = row.image_1 if side else row.image_0
        return to_pixels(decode_image(data, f"{row.key} image {side}"), self._size)

    def _tokens(self, row: PairRow) -> Tensor:
        try:
            return tokenize(self._tokenizer, [row.caption])
        except ValueError as error:
            raise DataError(f"{row.key}: {error}") from error

    def _draw(self, positions: Sequence[int], timestep: int | None) -> tuple[Tensor, Tensor]:
        """Timesteps int64 [B] and noise [B, C, H, W]."""
        policy, count = self.policy, len(self.policy.schedule.alphas_cumprod)
        at = -1 if timestep is None else timestep  # validation draws noise of its own
        drawn = [draw_noise(self._seed, at, position, 0, policy.latent_shape, count) for position in positions]
        times = torch.tensor([t if timestep is None else timestep for t, _ in drawn])
        return times.to(self._device), torch.stack([noise for _, noise in drawn]).to(self._device)

    def _label(self, rows: Sequence[PairRow], clean: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self._labeller is None:
            labels = torch.tensor([[row.label_0, row.label_1] for row in rows], device=self._device)
            return labels[:, 0], labels[:, 1]
        at_zero = torch.zeros(len(clean), dtype=torch.int64, device=self._device)
        scores = self._labeller.score(clean, input_ids.repeat(2, 1), at_zero)
        return labels_from_scores(*scores.chunk(2), tie_margin=self._labels.tie_margin)


def labels_from_scores(score_0: Tensor, score_1: Tensor, *, tie_margin: float) -> tuple[Tensor, Tensor]:
    """Labels [B] from scores [B]: 1 for the likelier picture, ½ where the probabilities differ by `tie_margin` or less.

    Probabilities are softmax(score_0, score_1), as the loss has them; their difference is tanh of half the scores'.
    """
    difference = torch.tanh((score_0.double() - score_1.double()) / 2)
    tie = difference.abs() <= tie_margin
    label_0 = torch.where(tie, 0.5, (difference > 0).double()).float()
    return label_0, 1 - label_0


def _native_size(policy: DiffusionPolicy) -> int:
    """Pixels of a side, from the latent's shape and the autoencoder's reduction."""
    with torch.no_grad():
        pixels = policy.decode(torch.zeros(1, *policy.latent_shape, device=policy.device))
    return int(pixels.shape[-1])
