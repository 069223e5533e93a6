"""Pictures of training data: decoded by `reward.images`' rules, refused by file and row, brought to one size."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from learner.datasets.rows import DataError
from reward import images

SHAPE_TOLERANCE = 0.02
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag of how a camera was held, and the values that exchange width and height."""
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


def refuse_unequal_shapes(first: tuple[str, bytes], second: tuple[str, bytes]) -> None:
    """Raise DataError where two encoded pictures (name, bytes) differ in aspect ratio by more than 2 %.

    Sizes that differ by their scale alone are well: both pictures are brought to the model's size.
    """
    (width, height), (other_width, other_height) = (_shown_size(*picture) for picture in (first, second))
    ratio = (width / height) / (other_width / other_height)
    if max(ratio, 1 / ratio) > 1 + SHAPE_TOLERANCE:
        raise DataError(
            f"{first[0]} has {width} x {height} pixels and {second[0]} {other_width} x {other_height}: cropped to one "
            f"shape they would show different parts; bring them to one shape, or set data.unequal_shapes to crop"
        )


def _shown_size(name: str, data: bytes) -> tuple[int, int]:
    """Width and height after the rotation that EXIF asks for, from the header. Raises DataError."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            turned = picture.getexif().get(ORIENTATION, 1) in TURNED
            return (picture.height, picture.width) if turned else picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return decode_image(data, name).size  # or what is wrong with it


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
