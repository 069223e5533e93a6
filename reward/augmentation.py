"""Changes of a picture that no preference depends on, for training a preference model that cannot answer by them.

Without it the miniature's model read a tint of 0.02 louder than the taste, and a policy trained on its scores followed
the tint. Not in the papers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def vary(pictures: Tensor, draw: torch.Generator, *, contrast: float, noise: Mapping[int, float]) -> Tensor:
    """Pictures [B, 3, h, w] in [-1, 1] with another contrast, tint, patches and grain, each picture its own; clamped.

    contrast: the difference from each channel's mean is multiplied by a factor uniform in 1 - contrast .. 1 + contrast.
    noise: cells of a grid a side, to the largest standard deviation of normal noise on that grid, a channel on its
        own, spread bilinearly. One cell is a tint, as many as pixels are grain. A picture's deviation is uniform
        between 0 and the largest.
    draw: a generator on the CPU, wherever the pictures are.
    """
    count, device = len(pictures), pictures.device
    mean = pictures.mean((2, 3), keepdim=True)
    factor = 1 + contrast * (2 * torch.rand(count, 1, 1, 1, generator=draw) - 1)
    varied = mean + factor.to(device) * (pictures - mean)
    for cells, largest in noise.items():
        deviation = largest * torch.rand(count, 1, 1, 1, generator=draw)
        grid = (deviation * torch.randn(count, 3, cells, cells, generator=draw)).to(device)
        varied = varied + F.interpolate(grid, pictures.shape[-2:], mode="bilinear", align_corners=False)
    return varied.clamp(-1, 1)
