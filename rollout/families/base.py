"""What every family shares: reading the pipeline, freezing it, and guidance over its conditioning.

A family says how prompts are encoded (by its pipeline's own `encode_prompt`) and how the network is called. Its
conditioning holds tensors by name; `negative_<name>` is what guidance pushes away from, and a name without such a twin
serves both halves.
Shapes: B rows, C H W latent, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from configs.model import ModelSection, NoiseSection
from rollout.assets import SINGLE_FILE, pipeline_path
from rollout.conditioning import Conditioning
from rollout.families.loading import check_kind, check_tokenizers, check_weights, read_pipeline
from rollout.trainable import frozen_channels_last
from rollout.transition import NoiseSchedule

_NEGATIVE = "negative_"


class Family(Protocol):
    """One model family over the components of its diffusers pipeline."""

    network: Any
    vae: Any
    scheduler: Any

    def to(self, device: torch.device) -> None:
        """Freeze every part and move it."""
        ...

    def encode(self, prompts: Sequence[str], negative_prompt: str) -> Conditioning: ...

    def forward(self, network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
        """Guided network output float32 [B, C, H, W] for x float32 [B, C, H, W] and t [B] as the network reads it."""
        ...

    def latent_shape(self, image_size: int | None) -> tuple[int, int, int]: ...

    def schedule(self, noise: NoiseSection, latent_shape: tuple[int, int, int]) -> NoiseSchedule: ...


class PipelineFamily:
    """A family over one pipeline; subclasses fill in `_encode` and `_call`."""

    network_part: ClassVar[str] = "unet"
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    unused: ClassVar[Mapping[str, Any]] = {}
    """Components that are never loaded, as keyword arguments of `from_pretrained`."""

    def __init__(self, pipeline: Any, *, vae_scale_factor: int | None = None) -> None:
        self.network: Any = getattr(pipeline, self.network_part)
        self.vae: Any = pipeline.vae
        self.scheduler: Any = pipeline.scheduler
        self.vae_scale_factor: int = vae_scale_factor or pipeline.vae_scale_factor
        self.pipeline: Any = pipeline

    @classmethod
    def pipeline_classes(cls) -> tuple[Any, ...]:
        """diffusers' classes for this family."""
        return ()

    @classmethod
    def load(
        cls, path: str, dtype: torch.dtype, *, network_only: bool, model: ModelSection | None = None
    ) -> PipelineFamily:
        """Read the pipeline at `path`: a directory, a hub id or one .safetensors file.

        `network_only` leaves decoder and text encoders out (a learner needs neither). Raises ValueError naming what is
        wrong with a checkpoint.
        """
        absent = dict(cls.unused)
        if network_only:
            absent |= {"vae": None, **dict.fromkeys(cls.text_parts)}
        if model is not None and not model.t5:
            absent |= cls.without_t5()
        pipeline, scale = read_pipeline(cls.pipeline_classes(), cls.network_part, path, dtype, absent, model)
        family = cls(pipeline, vae_scale_factor=scale)
        family.check()
        check_tokenizers(pipeline, path if model is None or model.config is None else model.config)
        return family

    @classmethod
    def check_kind(cls, pretrained: str) -> None:
        """Raise ValueError for a directory or hub id that holds another family's pipeline. Reads its index alone."""
        if not pretrained.endswith(SINGLE_FILE):
            check_kind(cls.pipeline_classes(), pipeline_path(pretrained))

    @classmethod
    def check_weights(cls, model: ModelSection) -> None:
        """Raise ValueError for a local file of weights that is cut short, or no such file. Reads headers alone."""
        absent = set(cls.unused) | (set() if model.t5 else set(cls.without_t5()))
        check_weights(pipeline_path(model.pretrained), absent, model.vae)

    @classmethod
    def without_t5(cls) -> dict[str, Any]:
        """What `model.t5: false` leaves out."""
        raise ValueError(f"model.t5 = false: only family sd3 works without T5, not {cls.__name__}")

    def check(self) -> None:
        """Raise ValueError for a pipeline that this family cannot use."""

    def to(self, device: torch.device) -> None:
        text = [getattr(self.pipeline, name, None) for name in self.text_parts]
        for part in (self.network, self.vae, *text):
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval().to(device)
        if self.vae is not None:  # the network's layout waits until it is known what of it is trained
            frozen_channels_last(self.vae)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative_prompt: str) -> Conditioning:
        """The conditioning of each prompt, float32 [B, ...]."""
        encoder = getattr(self.pipeline, self.text_parts[0])
        if encoder is None:
            raise RuntimeError("this policy was loaded without its text encoder (network_only)")
        tensors = self._encode(list(prompts), negative_prompt, encoder.device)
        return Conditioning({name: tensor.float() for name, tensor in tensors.items()})

    def forward(self, network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
        dtype = self.network.dtype
        tensors = {name: tensor.to(x.device, dtype) for name, tensor in conditioning.tensors.items()}
        positive = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NEGATIVE)}
        if scale == 1.0:
            return self._call(network, x.to(dtype), t, positive).float()
        both = {name: torch.cat([tensors.get(_NEGATIVE + name, tensor), tensor]) for name, tensor in positive.items()}
        output = self._call(network, torch.cat([x, x]).to(dtype), torch.cat([t, t]), both).float()
        unconditional, conditional = output.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    def latent_shape(self, image_size: int | None) -> tuple[int, int, int]:
        """[C, H, W] for pictures of `image_size` pixels; None is the size that the model was trained at."""
        if image_size is not None and image_size % self.size_step:
            raise ValueError(f"model.image_size = {image_size} is not a multiple of {self.size_step}")
        size = self.default_size() if image_size is None else image_size // self.vae_scale_factor
        return (self.channels(), size, size)

    @property
    def size_step(self) -> int:
        """Pictures are a multiple of this many pixels wide."""
        return self.vae_scale_factor

    def channels(self) -> int:
        return int(self.network.config.in_channels)

    def default_size(self) -> int:
        return int(self.network.config.sample_size)

    def schedule(self, noise: NoiseSection, latent_shape: tuple[int, int, int]) -> NoiseSchedule:
        return NoiseSchedule.from_scheduler(self.scheduler, noise.num_steps, eta=noise.eta)

    def _encode(self, prompts: list[str], negative_prompt: str, device: torch.device) -> dict[str, Tensor]:
        raise AssertionError("every family encodes its prompts")

    def _call(self, network: nn.Module, x: Tensor, t: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        raise AssertionError("every family calls its network")
