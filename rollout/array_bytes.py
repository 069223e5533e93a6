"""Safetensors bytes as numpy arrays, and their checksum: free of torch, so that the coordinating processes are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors


def checksum_of_arrays(state: Mapping[str, np.ndarray]) -> str:
    """sha256 over every array's name, shape and float32 bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name], dtype=np.float32)
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of safetensors bytes, as read-only views of a copy. Raises ValueError for damaged ones."""
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise ValueError(f"not safetensors ({len(data)} bytes): {error}") from error


def read_metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file held in memory (its header is JSON behind an 8-byte length)."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError("truncated safetensors header")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))
