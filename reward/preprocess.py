"""From pictures in [-1, 1] to what CLIP reads, differentiable and in float32.

Shapes: B batch, H W picture height and width, S CLIP's image size.

The order of operations is the step-wise paper's published one (arXiv:2406.04314): resize, crop, then map to [0, 1] and
clamp, so that overshoot of the bicubic filter is clamped too. It differs from CLIP's own processor, which resizes 8-bit
pictures with antialiasing: that is `published_pixels`, which every published scorer uses.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of each channel, arXiv:2103.00020's published code; also that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of each channel, same source."""

Fit = Literal["crop", "crop_floor", "pad"]


def resize_short_side(images: Tensor, size: int) -> Tensor:
    """[B, 3, H, W] → [B, 3, H', W'], the shorter of H', W' being `size`: bicubic, no antialias, corners not aligned."""
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    target = (int(height * scale + 0.5), int(width * scale + 0.5))
    if target == (height, width):
        return images
    return F.interpolate(images, size=target, mode="bicubic", align_corners=False, antialias=False)


def center_crop(images: Tensor, size: int) -> Tensor:
    """[B, 3, H, W] → [B, 3, size, size]; both sides at least `size`. Offsets round half to even (torchvision)."""
    height, width = images.shape[-2:]
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return images[..., top : top + size, left : left + size]


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """Pictures as CLIP reads them.

    Args:
        images: floating point [B, 3, H, W] in [-1, 1]; values beyond are clamped.
        size: S, CLIP's image size in pixels.

    Returns:
        float32 [B, 3, S, S], normalised with CLIP's mean and deviation.

    Raises:
        ValueError: images are not floating point [B, 3, H, W], or have no pixels.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape[2:]:
        raise ValueError(f"images is {images.dtype} {list(images.shape)}; expected floating point [B, 3, H, W]")
    images = center_crop(resize_short_side(images.float(), size), size)
    return _normalised((images / 2 + 0.5).clamp(0, 1))


def as_pictures(images: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in [-1, 1] → B pictures of 8 bits: clamped, rounded. Errors as `published_pixels`."""
    _check_pictures(images)
    levels = ((images.detach().float() / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).numpy()]


def published_pixels(images: Tensor, size: int, fit: Fit = "crop") -> Tensor:
    """Pictures as the published scorers' own code reads them: 8 bits, Pillow's (antialiased) bicubic, then CLIP's mean.

    Args:
        images: floating point [B, 3, H, W] in [-1, 1]; values beyond are clamped.
        size: S, the model's image size in pixels.
        fit: `crop`: the short side becomes S, the long one int(S · long / short), the centre is kept, offsets rounded
            half to even (torchvision; open_clip; ImageReward). `crop_floor`: the same, offsets rounded down (HF's
            CLIP processor). `pad`: the long side becomes S, the short one round(S · short / long), black around it
            (open_clip's `resize_longest_max`, as HPS v2 reads pictures).

    Returns:
        float32 [B, 3, S, S] on the device of `images`.

    Raises:
        ValueError: images are not floating point [B, 3, H, W], or have no pixels.
    """
    place = _padded if fit == "pad" else _cropped
    fitted = [np.asarray(place(picture, size, fit)) for picture in as_pictures(images)]
    pixels = torch.from_numpy(np.stack(fitted)).to(images.device).permute(0, 3, 1, 2).float() / 255
    return _normalised(pixels)


def _cropped(picture: Image.Image, size: int, fit: Fit) -> Image.Image:
    short = min(picture.size)
    width, height = (size if side == short else int(size * side / short) for side in picture.size)
    rounded = math.floor if fit == "crop_floor" else round
    left, top = rounded((width - size) / 2), rounded((height - size) / 2)
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def _padded(picture: Image.Image, size: int, fit: Fit) -> Image.Image:
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(picture.resize((width, height), Image.Resampling.BICUBIC), ((size - width) // 2, (size - height) // 2))
    return canvas


def _normalised(pixels: Tensor) -> Tensor:
    mean = torch.tensor(CLIP_MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=pixels.device).view(3, 1, 1)
    return (pixels - mean) / std


def _check_pictures(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape:
        raise ValueError(f"images is {images.dtype} {list(images.shape)}; expected floating point [B, 3, H, W]")
    if not bool(torch.isfinite(images).all()):
        row = int((~torch.isfinite(images)).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"images[{row}] has values that are not finite; expected pixels in [-1, 1]")
