"""The adapter as bytes and as a checksum: what learner, mailbox and workers compare."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor


def adapter_checksum(state: Mapping[str, Tensor]) -> str:
    """sha256 over every tensor's name, shape and float32 bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def serialise_adapter(state: Mapping[str, Tensor]) -> bytes:
    """Safetensors bytes of the float32 adapter."""
    return save_safetensors(
        {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    )


def deserialise_adapter(data: bytes) -> dict[str, Tensor]:
    """Inverse of `serialise_adapter`. Raises ValueError for damaged bytes."""
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise ValueError(f"not an adapter ({len(data)} bytes): {error}") from error
