"""What the group records share: checks of their tensors, and bytes that are safetensors + JSON, never a pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from rollout.array_bytes import read_metadata

_CONDITIONING_PREFIX = "conditioning."


def tensors_of(record: Any) -> dict[str, Tensor]:
    """Every tensor of a record, its conditioning's under a prefix."""
    own = {spec.name: value for spec in fields(record) if isinstance(value := getattr(record, spec.name), Tensor)}
    return own | {_CONDITIONING_PREFIX + name: value for name, value in record.conditioning.items()}


def pack(record: Any, key: str, version: int) -> bytes:
    """Serialise: tensors as safetensors, everything plain as JSON under `key` in its metadata."""
    plain: dict[str, Any] = {"format": version}
    for spec in fields(record):
        value = getattr(record, spec.name)
        if isinstance(value, int | float | str):
            plain[spec.name] = value
    tensors = {name: value.detach().contiguous().cpu() for name, value in tensors_of(record).items()}
    return save_safetensors(tensors, metadata={key: json.dumps(plain)})


def unpack(data: bytes, key: str, version: int, what: str, optional: Collection[str] = ()) -> dict[str, Any]:
    """Field values from bytes, `optional` ones None where absent. Raises ValueError for damaged or foreign bytes."""
    try:
        plain = json.loads(read_metadata(data)[key])
        tensors = load_safetensors(data)
    except (KeyError, SafetensorError, ValueError) as error:
        raise ValueError(f"not a {what} ({len(data)} bytes): {error}") from error
    if plain.pop("format", None) != version:
        raise ValueError(f"{what} of another format; this version reads {version}")
    conditioning = {
        name.removeprefix(_CONDITIONING_PREFIX): tensors.pop(name)
        for name in sorted(tensors)
        if name.startswith(_CONDITIONING_PREFIX)
    }
    absent = dict.fromkeys(optional)
    return {**absent, **plain, **tensors, "conditioning": conditioning}


def check_tensor(record: Any, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a field of another dtype or shape, or with values that are not finite."""
    value: Tensor = getattr(record, name)
    if value.dtype != dtype or tuple(value.shape) != shape:
        raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}; expected {dtype} {shape}")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} has non-finite values (ordinal {record.ordinal}, worker {record.worker})")


def check_scores(record: Any) -> None:
    """Refuse a score table that is not float32 [S, K], and a final score that is not finite."""
    if record.scores.dim() != 2:
        raise ValueError(f"scores has shape {tuple(record.scores.shape)}; expected [S, K]")
    check_tensor(record, "scores", torch.float32, tuple(record.scores.shape))
    if not math.isfinite(record.final_score):
        raise ValueError(f"final_score is {record.final_score}; scores must be finite")


def nbytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
