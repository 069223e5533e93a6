"""Picture files as RGB, whatever they were: CMYK, greyscale, palette, transparent, 16 bits, rotated by EXIF.

What is done, so that a file always gives the same pixels:
    rotation        applied as EXIF says, then forgotten
    transparency    laid over white, as the data sets' own viewers show it
    CMYK, greyscale, palette   converted by Pillow, without a colour profile
    16 bits         the upper 8 bits: value // 256 (32-bit greyscale files are read as 0..65535)
    animation       the first frame
A file that is damaged, not a picture, or larger than MAX_PIXELS is refused by name; nothing is guessed or left out.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs (a warning from half of it on)."""


def decode_image(source: Path | str | bytes, *, name: str | None = None) -> Image.Image:
    """The picture in mode RGB, of a file or of a file's bytes.

    Args:
        source: path, or encoded bytes.
        name: what errors call it; the path where it is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded; names the file and the reason.
    """
    called = name or (str(source) if not isinstance(source, bytes) else "picture")
    if not isinstance(source, bytes):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"picture {called} does not exist")
        source = path.read_bytes()
    if not source:
        raise ValueError(f"picture {called} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source)) as opened:
                opened.load()
                return to_rgb(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"picture {called} is too large ({error}); scale it down first") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError) as error:  # all of what Pillow's decoders raise
        reason = re.sub(r"\s*<_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)) or type(error).__name__
        raise ValueError(f"picture {called} cannot be decoded (damaged, or not a picture): {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes → RGB, as this module's head says."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 256
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, (255, 255, 255, 255)), above).convert("RGB")
    return image.convert("RGB")


def image_tensor(image: Image.Image) -> Tensor:
    """RGB picture → float32 [3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return pixels.float() / 127.5 - 1


def png_bytes(image: Tensor) -> bytes:
    """[3, H, W] in [-1, 1] → an 8-bit RGB PNG: clamped, rounded to the nearest level."""
    levels = ((image.detach().float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
