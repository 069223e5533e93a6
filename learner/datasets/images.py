"""From a picture file's bytes to 8-bit RGB, and on to the tensor that an autoencoder reads.

One rule for each kind, so that the same file means the same pixels everywhere:
    alpha (RGBA, LA, P with transparency)   composited over white
    CMYK, YCbCr, LAB, HSV                   Pillow's conversion to RGB; embedded colour profiles are not applied
    greyscale, 1-bit, palette               repeated or looked up
    16 bit a channel, 32-bit integer        the high byte of 16 bits: value / 257, rounded
    floating point                          refused: its range is unknown
    EXIF orientation                        applied
    animations                              the first frame
Corrupt and truncated files, and pictures with a side below MIN_SIDE pixels, are refused.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from learner.datasets.rows import DataError

MIN_SIDE = 8
"""Pixels. An autoencoder's latent has one element for 8 x 8 of them."""
_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def decode_image(data: bytes, key: str) -> Image.Image:
    """The picture as 8-bit RGB, by the rules above. Raises DataError, which starts with `key` and says why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data))
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{key}: picture of too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{key}: corrupt picture: its {len(data)} bytes are no format that Pillow knows") from error
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over
        raise DataError(f"{key}: corrupt picture: {error}") from error
    if min(picture.size) < MIN_SIDE:
        width, height = picture.size
        raise DataError(f"{key}: picture of {width} x {height} pixels; each side must have at least {MIN_SIDE}")
    return _rgb(picture, key)


def _rgb(picture: Image.Image, key: str) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode == "F":
        raise DataError(f"{key}: picture of floating-point values; save it with 8 or 16 bits a channel")
    if picture.mode in _WIDE_MODES:
        wide = np.asarray(picture).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise DataError(f"{key}: picture with values {wide.min()} to {wide.max()}; 0 to 65535 are read")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


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
