"""From pictures in [-1, 1] to what CLIP reads, differentiable and in float32.

Shapes: B batch, H W picture height and width, S CLIP's image size.

The order of operations is the step-wise paper's published one (arXiv:2406.04314): resize, crop, then map to [0, 1] and
clamp, so that overshoot of the bicubic filter is clamped too. It differs from CLIP's own processor, which resizes 8-bit
pictures with antialiasing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of each channel, arXiv:2103.00020's published code; also that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of each channel, same source."""


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
    images = (images / 2 + 0.5).clamp(0, 1)
    mean = torch.tensor(CLIP_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=images.device).view(3, 1, 1)
    return (images - mean) / std
