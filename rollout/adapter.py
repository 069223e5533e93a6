"""The adapter as bytes and as a checksum: what learner, mailbox and workers compare."""

from __future__ import annotations

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from rollout.array_bytes import checksum_of_arrays


def adapter_checksum(state: Mapping[str, Tensor]) -> str:
    """sha256 over every tensor's name, shape and float32 bytes, in the order of names."""
    return checksum_of_arrays({name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()})


def changes_nothing(state: Mapping[str, Tensor]) -> bool:
    """Whether every B is zero: the adapter then adds nothing to any layer, and no picture changes."""
    ups = [tensor for name, tensor in state.items() if name.endswith(".lora_B.weight")]
    return bool(ups) and not any(bool(tensor.any()) for tensor in ups)


def serialise_adapter(state: Mapping[str, Tensor]) -> bytes:
    """Safetensors bytes of the float32 adapter."""
    return save_safetensors({name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()})


def deserialise_adapter(data: bytes) -> dict[str, Tensor]:
    """Inverse of `serialise_adapter`. Raises ValueError for damaged bytes."""
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise ValueError(f"no published weights ({len(data)} bytes): {error}") from error
