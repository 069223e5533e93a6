"""Encoded images on disk, shared by ranks, epochs and runs. An entry is never wrong: its name says what it was made of.

    <directory>/<first 16 of sha256(autoencoder)>-<pixels>/<2 hex>/<sha256(image's bytes)>.safetensors

The autoencoder's hash covers its weights in the dtype in which they run, its configuration, and the rule by which
images are fitted. Entries appear whole, by rename. One that cannot be read, or whose checksum differs, is made anew and
counted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from learner.datasets.rows import DataError
from rollout.array_bytes import read_metadata

FIT_RULE = "short side bicubic antialiased, centre crop, 1"
"""Changes when `learner.datasets.images.to_pixels` does."""


class LatentCache:
    """Latents float32 [C, H, W] by image. `hits`, `misses` and `corrupt` count this process's lookups."""

    def __init__(self, directory: Path, autoencoder_sha256: str, image_size: int, shape: tuple[int, int, int]) -> None:
        """Makes the directory. Raises DataError where that cannot be."""
        make_directory(directory)
        self._folder = directory / f"{autoencoder_sha256[:16]}-{image_size}"
        self._autoencoder = autoencoder_sha256
        self._shape = shape
        self.hits = self.misses = self.corrupt = 0

    def get(self, image: bytes) -> Tensor | None:
        """The latent of an encoded image, or None where it is to be made (then `put` it)."""
        path = self.path(image)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            self.misses += 1
            return None
        latent = self._checked(data)
        if latent is None:
            self.corrupt += 1
        else:
            self.hits += 1
        return latent

    def put(self, image: bytes, latent: Tensor) -> None:
        """Keep a latent; whoever else writes the same entry writes the same bytes."""
        path = self.path(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensor = latent.detach().float().cpu().contiguous()
        metadata = {"autoencoder": self._autoencoder, "sha256": _digest(tensor)}
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(save({"latent": tensor}, metadata))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def path(self, image: bytes) -> Path:
        """Where the latent of an image lies."""
        name = hashlib.sha256(image).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def _checked(self, data: bytes) -> Tensor | None:
        """The latent in an entry; None for a damaged one or one of another autoencoder."""
        try:
            metadata, latent = read_metadata(data), load(data)["latent"]
        except (SafetensorError, KeyError, ValueError):
            return None
        mine = latent.dtype == torch.float32 and tuple(latent.shape) == self._shape
        known = metadata.get("autoencoder") == self._autoencoder and metadata.get("sha256") == _digest(latent)
        return latent if mine and known else None


def make_directory(directory: Path) -> None:
    """Raises DataError where the directory cannot be, or nothing can be written into it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = "a file is there" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise DataError(
            f"data.latent_cache = {directory} cannot be written: {reason}; name another directory, or leave it out"
        ) from error


def autoencoder_sha256(vae: nn.Module) -> str:
    """A hash of everything that a latent depends on beside the image and its size."""
    digest = hashlib.sha256(FIT_RULE.encode())
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}  # type: ignore[union-attr,operator]
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(_raw(tensor)).hexdigest()


def _raw(tensor: Tensor) -> bytes:
    flat: Tensor = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
