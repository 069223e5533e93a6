"""A module's weights as files: safetensors, or a weights-only pickle of tensors. Nothing is ignored on the way in."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reward.torchscript_file import is_torchscript, read_torchscript

_LISTED = 20
_SAFETENSORS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
_PICKLES = re.compile(r"(diffusion_)?pytorch_model(-\d+-of-\d+)?\.bin")
_PICKLE = b"\x80"
"""How torch's files began before version 1.6; today they are zip archives, whose directory comes last."""


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Name → tensor, on the CPU, from a `.safetensors` file or a weights-only `.bin`, `.pt` or `.pth`.

    Training checkpoints that keep the weights under `state_dict` (open_clip's, HPS's) are read from there. Of a
    TorchScript archive only the tensors are read; its program is not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another ending, a truncated or foreign file, or one that holds more than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
        raise ValueError(f"checkpoint {path} ends in {path.suffix!r}; expected .safetensors, .bin, .pt or .pth")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            return read_torchscript(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words advise to unpickle everything
        raise ValueError(
            f"checkpoint {path} cannot be read (truncated, or not a weights file): Python objects beside its tensors "
            f"are not unpickled, as that could run code. Save the tensors alone, as .safetensors"
        ) from error
    except (SafetensorError, BadZipFile, EOFError, RuntimeError) as error:
        raise ValueError(f"checkpoint {path} cannot be read (truncated, or not a weights file): {error}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {path} is not a flat mapping from names to tensors")
    return state


def weight_files(folder: Path) -> list[Path]:
    """What a `from_pretrained` without a variant reads of `folder`: .safetensors, or .bin where there are none."""
    files = sorted(folder.glob("*"))
    kinds = ([file for file in files if kind.fullmatch(file.name)] for kind in (_SAFETENSORS, _PICKLES))
    return next((found for found in kinds if found), [])


def check_whole(path: Path, field: str) -> None:
    """Raise ValueError, naming `field`, for a file of weights that is cut short, or no such file.

    Reads the header of a .safetensors file, which tells its size, or the directory at the end of torch's archive. Of a
    file by a torch before 1.6 nothing but the first byte is looked at.
    """
    fault = None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return
        with open(path, "rb") as file:
            begins = file.read(1)
        if begins != _PICKLE and not is_zipfile(path):
            fault = "neither torch's archive nor a pickle" if begins != b"P" else "its directory is missing"
    except (OSError, SafetensorError) as error:
        fault = str(error)
    if fault:
        raise ValueError(
            f"{field} {path}: cannot be read (truncated, or not a weights file): {fault}; download it again"
        )


def folder_or_hub_id(place: Path | str, what: str) -> str:
    """`place` for a `from_pretrained` of transformers, which takes every folder that does not exist for a hub id.

    Raises FileNotFoundError, calling it `what`, for what does not exist and cannot be `name` or `owner/name` either.
    """
    text = str(place)
    if not Path(text).exists() and (text.startswith((".", "/", "~")) or text.count("/") > 1):
        raise FileNotFoundError(f"{what} {text} does not exist; give a folder, or a hub id such as owner/name")
    return text


def load_strict(
    module: nn.Module, state: dict[str, Tensor], source: str, told: Callable[[str], str] = lambda name: name
) -> None:
    """Copy `state` into `module`, every tensor of it and into every parameter.

    `told`: a name of the module → what the file of `source` calls it, for messages.

    A name that the module does not store is tolerated only where it is a buffer of equal value (older versions of
    transformers stored `position_ids`).

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; lists them.
    """
    wanted = module.state_dict()
    buffers = dict(module.named_buffers())
    missing = sorted(told(name) for name in wanted.keys() - state.keys())
    unexpected = sorted(
        told(name)
        for name in state.keys() - wanted.keys()
        if name not in buffers or not torch.equal(state[name].to(buffers[name]), buffers[name])
    )
    shapes = [
        f"{told(name)} {list(state[name].shape)} for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(names for _, names in faults):
        faulty = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in faults if names)
        raise ValueError(f"{source} does not fit {type(module).__name__}: {faulty}")
    module.load_state_dict({name: state[name] for name in wanted})


def weights_version(*paths: Path | str) -> str:
    """8 hex digits of the SHA-256 of the files, one after another: what a metric's name says of a checkpoint."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:8]


def write_weights(module: nn.Module, path: Path | str) -> None:
    """Write the module's state as safetensors. The file appears whole or not at all: temporary file, fsync, rename."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"checkpoint {path} has to end in .safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    try:
        save_tensors(state, temporary, {"format": "pt"})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file with the permissions of any new file; `save_file` alone leaves it to its owner only."""
    path.touch()
    permissions = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(permissions)


def listed(names: list[str]) -> str:
    """The first twenty, and how many more."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
