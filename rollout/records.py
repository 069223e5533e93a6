"""What travels from rollout to learner: a frozen, validated record; its bytes are safetensors + JSON, never a pickle.

Shapes: T pairs kept, S scored steps, K candidates, C H W latent, L D conditioning tokens and width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from rollout.array_bytes import read_metadata

FORMAT_VERSION = 1
_CONDITIONING_PREFIX = "conditioning."
_LATENTS = ("x_t", "x_prev_win", "x_prev_lose")
_OPTIONAL_LATENTS = ("x_t_lose", "ref_mean_win", "ref_mean_lose")
_PER_PAIR = ("score_win", "score_lose", "behaviour_logp_win", "behaviour_logp_lose")


@dataclass(frozen=True)
class GroupHeader:
    """What the queue must know of a group without opening it."""

    ordinal: int
    policy_step: int
    adapter_sha256: str
    worker: str
    num_pairs: int
    nbytes: int
    final_score: float


@dataclass(frozen=True, eq=False)
class PreferenceGroup:
    """Everything that one prompt's rollout gave.

    Raises ValueError on construction, naming the field, when a shape, dtype or value breaks the contract.
    """

    ordinal: int
    prompt: str
    seed: int
    policy_step: int
    adapter_sha256: str
    worker: str
    conditioning: Mapping[str, Tensor]
    """Once for all pairs; each tensor has no batch dimension."""
    x_t: Tensor
    """float32 [T, C, H, W]: the state that both halves leave, or the winner's where `x_t_lose` is given."""
    x_t_lose: Tensor | None
    """float32 [T, C, H, W], None where both halves share `x_t` (block length 1)."""
    x_prev_win: Tensor
    """float32 [T, C, H, W]"""
    x_prev_lose: Tensor
    """float32 [T, C, H, W]"""
    timestep: Tensor
    """int64 [T], the timestep of `x_t`."""
    ref_mean_win: Tensor | None
    """float32 [T, C, H, W]: the reference's mean at `x_t`; None when the learner evaluates the reference."""
    ref_mean_lose: Tensor | None
    """float32 [T, C, H, W]: at `x_t_lose`; None where shared."""
    score_win: Tensor
    """float32 [T]"""
    score_lose: Tensor
    """float32 [T]"""
    behaviour_logp_win: Tensor
    """float32 [T]: log p of the winner under the policy that sampled it."""
    behaviour_logp_lose: Tensor
    """float32 [T]"""
    scores: Tensor
    """float32 [S, K]: every candidate's score, kept or not."""
    score_timesteps: Tensor
    """int64 [S]: the timestep at which each row was scored."""
    final_score: float
    """Mean score of the last candidates: finished pictures at timestep 0, unless the sampler is set to stop earlier."""

    def __post_init__(self) -> None:
        pairs = self.num_pairs
        for name in _LATENTS:
            _check(self, name, torch.float32, tuple(self.x_prev_win.shape))
        if self.x_prev_win.dim() != 4:
            raise ValueError(f"x_prev_win has shape {tuple(self.x_prev_win.shape)}; expected [T, C, H, W]")
        for name in _OPTIONAL_LATENTS:
            if getattr(self, name) is not None:
                _check(self, name, torch.float32, tuple(self.x_prev_win.shape))
        for name in _PER_PAIR:
            _check(self, name, torch.float32, (pairs,))
        _check(self, "timestep", torch.int64, (pairs,))
        if self.scores.dim() != 2:
            raise ValueError(f"scores has shape {tuple(self.scores.shape)}; expected [S, K]")
        _check(self, "scores", torch.float32, tuple(self.scores.shape))
        _check(self, "score_timesteps", torch.int64, (self.scores.shape[0],))
        if not math.isfinite(self.final_score):
            raise ValueError(f"final_score is {self.final_score}; scores must be finite")
        if self.x_t_lose is not None and self.ref_mean_win is not None and self.ref_mean_lose is None:
            raise ValueError("ref_mean_lose is missing although the halves have different x_t")

    @property
    def num_pairs(self) -> int:
        """T: pairs that passed the threshold; 0 is a valid group without a training signal."""
        return int(self.x_prev_win.shape[0])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.x_prev_win.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    def header(self, nbytes: int | None = None) -> GroupHeader:
        """The header; `nbytes` is the length of the serialised form where it is known."""
        return GroupHeader(
            ordinal=self.ordinal,
            policy_step=self.policy_step,
            adapter_sha256=self.adapter_sha256,
            worker=self.worker,
            num_pairs=self.num_pairs,
            nbytes=self.nbytes if nbytes is None else nbytes,
            final_score=self.final_score,
        )

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            spec.name: value for spec in fields(self) if isinstance(value := getattr(self, spec.name), torch.Tensor)
        }
        tensors.update({_CONDITIONING_PREFIX + name: value for name, value in self.conditioning.items()})
        return tensors

    def to_bytes(self) -> bytes:
        """Serialise: tensors as safetensors, everything else as JSON in its metadata."""
        plain = {
            "format": FORMAT_VERSION,
            "ordinal": self.ordinal,
            "prompt": self.prompt,
            "seed": self.seed,
            "policy_step": self.policy_step,
            "adapter_sha256": self.adapter_sha256,
            "worker": self.worker,
            "final_score": self.final_score,
        }
        tensors = {name: value.detach().contiguous().cpu() for name, value in self._tensors().items()}
        return save_safetensors(tensors, metadata={"group": json.dumps(plain)})

    @classmethod
    def from_bytes(cls, data: bytes) -> PreferenceGroup:
        """Inverse of `to_bytes`. Raises ValueError naming what is wrong with damaged or foreign bytes."""
        try:
            plain = json.loads(read_metadata(data)["group"])
            tensors = load_safetensors(data)
        except (KeyError, SafetensorError, ValueError) as error:
            raise ValueError(f"not a preference group ({len(data)} bytes): {error}") from error
        if plain.pop("format", None) != FORMAT_VERSION:
            raise ValueError(f"preference group of another format; this version reads {FORMAT_VERSION}")
        conditioning = {
            name.removeprefix(_CONDITIONING_PREFIX): tensors.pop(name)
            for name in sorted(tensors)
            if name.startswith(_CONDITIONING_PREFIX)
        }
        optional = {name: tensors.pop(name, None) for name in _OPTIONAL_LATENTS}
        values: dict[str, Any] = {**plain, **tensors, **optional}
        try:
            return cls(conditioning=conditioning, **values)
        except TypeError as error:
            raise ValueError(f"preference group with missing or unknown fields: {error}") from error


def _check(group: PreferenceGroup, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value: Tensor = getattr(group, name)
    if value.dtype != dtype or tuple(value.shape) != shape:
        raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}; expected {dtype} {shape}")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} has non-finite values (ordinal {group.ordinal}, worker {group.worker})")
