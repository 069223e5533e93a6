"""The policy: one diffusion model with its trained weights, as sampler and learner both see it.

Everything outside the networks is float32. The reference is the frozen base, in the same dtype and through the same
code, so that the ratio of the two is 1 before the first update (rollout/trainable.py). "Adapter" below and in the names
of files and fields is whatever is trained: a LoRA, or all of the network's weights.
Shapes: B rows, C H W latent, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from configs.model import ModelSection, NoiseSection
from rollout.adapter import adapter_checksum
from rollout.assets import pipeline_path
from rollout.conditioning import Conditioning
from rollout.families import FAMILIES, Family
from rollout.init_lora import start_from_lora
from rollout.trainable import FullWeights, LoraWeights, TrainedWeights, add_lora, frozen_channels_last
from rollout.transition import NoiseSchedule

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DiffusionPolicy:
    """A diffusers model, its noise schedule and its trained weights. Build it with `load_policy`."""

    def __init__(
        self,
        family: Family,
        schedule: NoiseSchedule,
        noise: NoiseSection,
        latent_shape: tuple[int, int, int],
        weights: TrainedWeights | None = None,
    ) -> None:
        """Without `weights`, a LoRA that diffusers has loaded, or none."""
        self.schedule = schedule
        self.latent_shape = latent_shape
        self.max_batch: int | None = None
        """Most rows in one call of network or decoder while no gradient is needed."""
        self._family = family
        self._noise = noise
        self._weights = LoraWeights(family.network) if weights is None else weights

    @property
    def network(self) -> Any:
        """The denoising network (nn.Module)."""
        return self._family.network

    @property
    def device(self) -> torch.device:
        return self.schedule.alphas_cumprod.device

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of each prompt, the negative prompt's included."""
        return self._family.encode(prompts, self._noise.negative_prompt)

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        *,
        network: nn.Module | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Guided network output, float32 [B, C, H, W], for x float32 [B, C, H, W] at t int64 [B].

        `network` stands in for the bare network where an engine wraps it (training). `guidance` stands in for
        `noise.guidance_scale`; 1 is the prompt's own prediction.
        """
        scale = self._noise.guidance_scale if guidance is None else guidance

        def call(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            time = self.schedule.network_time(t)
            return self._family.forward(network or self.network, x, time, conditioning, scale)

        if torch.is_grad_enabled() or self.max_batch is None or len(x) <= self.max_batch:
            return call(x, t, conditioning)
        parts = [slice(start, start + self.max_batch) for start in range(0, len(x), self.max_batch)]
        return torch.cat([call(x[part], t[part], conditioning.rows(part)) for part in parts])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures float32 [B, 3, h, w] in [-1, 1] of latents float32 [B, C, H, W]."""
        vae = self._require_vae()
        shift = getattr(vae.config, "shift_factor", None) or 0.0

        def call(part: Tensor) -> Tensor:
            scaled = part / vae.config.scaling_factor + shift
            return vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float().clamp(-1, 1)

        return self._in_parts(call, latents)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents float32 [B, C, H, W] (the posterior's mean) of pictures [B, 3, h, w] in [-1, 1]."""
        vae = self._require_vae()
        shift = getattr(vae.config, "shift_factor", None) or 0.0

        def call(part: Tensor) -> Tensor:
            mean = vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mode().float()
            return (mean - shift) * vae.config.scaling_factor

        return self._in_parts(call, images)

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the network is the frozen base: same path, same dtype. RuntimeError where it was not loaded."""
        return self._weights.reference()

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters with stable names, sorted by name: `...to_q.lora_A.weight`, or the network's own."""
        return self._weights.named()

    def adapter_state(self) -> dict[str, Tensor]:
        """A float32 CPU copy of the trained weights."""
        return {name: p.detach().float().cpu().clone() for name, p in self.trainable_parameters()}

    def load_adapter(self, state: Mapping[str, Tensor], checksum: str) -> None:
        """Copy `state` into the existing tensors and verify the result against `checksum`.

        Raises ValueError, before anything is changed, when names or shapes differ, and when the checksum does.
        """
        own = dict(self.trainable_parameters())
        if missing := sorted(own.keys() ^ state.keys()):
            raise ValueError(f"{self._weights.foreign}: {len(missing)} names differ, first {missing[:3]}")
        for name, parameter in own.items():
            if state[name].shape != parameter.shape:
                found, wanted = tuple(state[name].shape), tuple(parameter.shape)
                raise ValueError(f"weight {name} has shape {found}; this model needs {wanted}")
        if (found_sum := adapter_checksum(dict(state))) != checksum:
            raise ValueError(f"weights of checksum {found_sum[:12]} are not the published {checksum[:12]}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])
        if (loaded := adapter_checksum(self.adapter_state())) != checksum:
            raise RuntimeError(f"weights changed while loading: {loaded[:12]} instead of {checksum[:12]}")

    def _require_vae(self) -> Any:
        if self._family.vae is None:
            raise RuntimeError("this policy was loaded without its autoencoder (network_only)")
        return self._family.vae

    def _in_parts(self, call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        return torch.cat([call(part) for part in rows.split(self.max_batch or len(rows))])


def load_policy(
    model: ModelSection,
    noise: NoiseSection,
    device: torch.device | str,
    *,
    seed: int,
    network_only: bool = False,
    reference: bool = True,
) -> DiffusionPolicy:
    """Read the pipeline, freeze it, and make what `model.trainable` names trainable; nothing is changed yet.

    `seed` fixes an adapter's initialisation, so that every process starts from the same one. `network_only` leaves
    out decoder and text encoder. `reference`: keep a copy for `DiffusionPolicy.reference` where the whole network is
    trained. Trained weights are float32 whatever the base's dtype.
    """
    device = torch.device(device)
    dtype = resolve_dtype(model.dtype, device)
    path = pipeline_path(model.pretrained)
    family = FAMILIES[model.family].load(path, dtype, network_only=network_only, model=model)
    return assemble_policy(family, model, noise, device, seed=seed, reference=reference)


def assemble_policy(
    family: Family,
    model: ModelSection,
    noise: NoiseSection,
    device: torch.device,
    *,
    seed: int,
    reference: bool = True,
) -> DiffusionPolicy:
    """`load_policy` for a pipeline that is in memory already."""
    shape = family.latent_shape(model.image_size)
    schedule = family.schedule(noise, shape)
    family.to(device)
    network = family.network
    weights: TrainedWeights
    if model.trainable == "lora":
        weights = add_lora(network, model.lora, seed)
        start_from_lora(network, dict(weights.named()), model)
    else:
        start_from_lora(network, {}, model)
        weights = FullWeights(family, resolve_dtype(model.dtype, device), device, reference=reference)
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    frozen_channels_last(network)
    return DiffusionPolicy(family, schedule.to(device), noise, shape, weights)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]
