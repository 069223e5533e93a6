"""What the group records share: checks of their tensors, and bytes that are safetensors + JSON, never a pickle.

The queue opens every group to check it and computes nothing: it reads numpy arrays into the same records (`arrays`),
so that its process does not carry torch. Everybody else reads tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save as save_safetensors

from rollout.array_bytes import read_arrays, read_metadata

Dtype = Literal["float32", "int64"]
_CONDITIONING_PREFIX = "conditioning."


def tensors_of(record: Any) -> dict[str, Any]:
    """Every tensor (or array) of a record, its conditioning's under a prefix."""
    own = {spec.name: value for spec in fields(record) if hasattr(value := getattr(record, spec.name), "dtype")}
    return own | {_CONDITIONING_PREFIX + name: value for name, value in record.conditioning.items()}


def pack(record: Any, key: str, version: int) -> bytes:
    """Serialise: tensors as safetensors, everything plain as JSON under `key` in its metadata."""
    plain: dict[str, Any] = {"format": version}
    for spec in fields(record):
        value = getattr(record, spec.name)
        if isinstance(value, int | float | str):
            plain[spec.name] = value
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors_of(record).items()}
    return save_safetensors(arrays, metadata={key: json.dumps(plain)})


def unpack(
    data: bytes, key: str, version: int, what: str, optional: Collection[str] = (), *, arrays: bool = False
) -> dict[str, Any]:
    """Field values from bytes, `optional` ones None where absent. Raises ValueError for damaged or foreign bytes."""
    try:
        plain = json.loads(read_metadata(data)[key])
        tensors = read_arrays(data) if arrays else _read_tensors(data)
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


def _read_tensors(data: bytes) -> dict[str, Any]:
    from safetensors.torch import load

    return load(data)


def check_tensor(record: Any, name: str, dtype: Dtype, shape: tuple[int, ...]) -> None:
    """Refuse a field of another dtype or shape, or with values that are not finite."""
    value = getattr(record, name)
    found = str(value.dtype).removeprefix("torch.")
    if found != dtype or tuple(value.shape) != shape:
        raise ValueError(f"{name} is {found} {tuple(value.shape)}; expected {dtype} {shape}")
    if dtype == "float32" and not bool(np.isfinite(np.asarray(value)).all()):
        raise ValueError(f"{name} has non-finite values (ordinal {record.ordinal}, worker {record.worker})")


def check_scores(record: Any) -> None:
    """Refuse a score table that is not float32 [S, K], and a final score that is not finite."""
    if record.scores.ndim != 2:
        raise ValueError(f"scores has shape {tuple(record.scores.shape)}; expected [S, K]")
    check_tensor(record, "scores", "float32", tuple(record.scores.shape))
    if not math.isfinite(record.final_score):
        raise ValueError(f"final_score is {record.final_score}; scores must be finite")


def nbytes_of(tensors: Mapping[str, Any]) -> int:
    return sum(int(tensor.nbytes) for tensor in tensors.values())
