"""Pictures of training data: decoded by `reward.images`' rules, refused by file and row, brought to one size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from learner.datasets.rows import DataError
from reward import images

MIN_SIDE = 8
"""Pixels. An autoencoder's latent has one element for 8 x 8 of them."""


def decode_image(data: bytes, key: str) -> Image.Image:
    """The picture as 8-bit RGB, by the rules of `reward.images`: alpha over white, CMYK converted, 16 bits scaled.

    Raises DataError, naming `key`, for one that is corrupt, truncated, or has a side below MIN_SIDE pixels.
    """
    try:
        picture = images.decode_image(data, name=key)
    except ValueError as error:
        raise DataError(str(error)) from error
    if min(picture.size) < MIN_SIDE:
        width, height = picture.size
        raise DataError(f"picture {key} has {width} x {height} pixels; each side must have at least {MIN_SIDE}")
    return picture


def to_pixels(picture: Image.Image, size: int) -> Tensor:
    """float32 [3, size, size] in [-1, 1]: short side to `size` (bicubic, antialiased), centre cropped."""
    width, height = picture.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        target = max(size, round(width * scale)), max(size, round(height * scale))
        picture = picture.resize(target, Image.Resampling.BICUBIC)
        left, top = (target[0] - size) // 2, (target[1] - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    array = np.asarray(picture, dtype=np.uint8)
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1
