"""Statistics of the AI look: what drifts when a model is trained for reward. No model, no prompt; pictures alone.

They are read as differences from the starting model on the same prompts and seeds, never as good or bad by themselves.
x is RGB in [0, 1], Y = 0.299 R + 0.587 G + 0.114 B its luma (ITU-R BT.601). Shapes: B pictures, H W their size.

    statistic            the AI look moves it   flat pictures give
    high_frequency       down (over-smooth)     0
    depth_of_field       up (blurred border)    0
    saturation           up                     0 where grey
    brightness_spread    down (uniform light)   0
    mirror_symmetry      up (bland composition) 1
    palette_entropy      down (one grading)     0 where all are one colour
    palette_divergence   down (one grading)     0 where all are alike
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
HIGH_FREQUENCY_FROM = 0.25
"""Cycles per pixel: half of the highest frequency that a pixel grid can carry along an axis."""
SHARPNESS_FLOOR = 1e-6
"""Added to both sharpnesses, in squared luma: about the rounding noise of 8-bit pictures."""
FLAT_VARIANCE = 1e-10
"""Luma variance below which a picture is flat: 8-bit pictures of one level have 0."""
LEVELS = 8
"""Palette bins per channel: 512 colours."""


def appearance(images: Tensor) -> dict[str, Tensor]:
    """The statistics of single pictures, float32 [B] each.

    images: floating point [B, 3, H, W] in [-1, 1]; beyond is clamped. Raises ValueError for anything else.
    """
    x = _unit_range(images)
    y = luma(x)
    return {
        "high_frequency": high_frequency(y),
        "depth_of_field": depth_of_field(y),
        "saturation": saturation(x),
        "brightness_spread": brightness_spread(y),
        "mirror_symmetry": mirror_symmetry(y),
    }


def luma(x: Tensor) -> Tensor:
    """Y, [B, H, W] of x [B, 3, H, W] in [0, 1]."""
    return (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1)


def high_frequency(y: Tensor) -> Tensor:
    """Share of Y's variance at |f| > 0.25 cycles per pixel: Σ_{|f|>0.25} |F(f)|² / Σ_{f} |F(f)|², [B] in 0..1.

    F is the Fourier transform of Y − mean(Y) under a Hann window (so that the picture's edges are no texture). Natural
    pictures fall off as 1/f² in power (Field, J. Opt. Soc. Am. A 4, 1987); smoothing makes them fall faster.
    """
    height, width = y.shape[-2:]
    window = _hann(height, y)[:, None] * _hann(width, y)[None, :]
    power = torch.fft.fft2((y - y.mean(dim=(1, 2), keepdim=True)) * window).abs().square()
    radius = torch.hypot(
        torch.fft.fftfreq(height, device=y.device)[:, None], torch.fft.fftfreq(width, device=y.device)[None, :]
    )
    total = power.sum(dim=(1, 2))
    high = (power * (radius > HIGH_FREQUENCY_FROM)).sum(dim=(1, 2))
    return torch.where(_flat(y), torch.zeros_like(total), high / total.clamp(min=1e-20))


def depth_of_field(y: Tensor) -> Tensor:
    """log2 of the centre's sharpness over the border's: +1 means twice the gradient energy in the centre, [B].

    Sharpness is the mean of |∇Y|² by forward differences (the Tenengrad kind of focus measure, Krotkov, Int. J. Comput.
    Vision 1, 1988); the centre is the middle half of both sides. The comparison of centre and rest as a sign of shallow
    depth of field is that of Datta et al., ECCV 2006.
    """
    height, width = y.shape[-2:]
    energy = torch.zeros_like(y)
    energy[:, :-1, :] += (y[:, 1:, :] - y[:, :-1, :]).square()
    energy[:, :, :-1] += (y[:, :, 1:] - y[:, :, :-1]).square()
    centre = torch.zeros(height, width, dtype=torch.bool, device=y.device)
    centre[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    if bool(centre.all()):  # fewer than 4 pixels on both sides: there is no border
        return y.new_zeros(y.shape[0])
    inside, outside = energy[:, centre].mean(dim=1), energy[:, ~centre].mean(dim=1)
    return torch.log2((inside + SHARPNESS_FLOOR) / (outside + SHARPNESS_FLOOR))


def saturation(x: Tensor) -> Tensor:
    """Colourfulness M = √(σ²_rg + σ²_yb) + 0.3 · √(μ²_rg + μ²_yb), rg = R − G, yb = (R + G)/2 − B, on 0..255, [B].

    Hasler and Süsstrunk, Human Vision and Electronic Imaging VIII, 2003. Mixing a share s of grey into a picture of the
    same luma multiplies M by 1 − s.
    """
    red, green, blue = (255 * x).unbind(dim=1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1).flatten(2)  # [B, 2, HW]
    return opponents.std(dim=2, correction=0).norm(dim=1) + 0.3 * opponents.mean(dim=2).norm(dim=1)


def brightness_spread(y: Tensor) -> Tensor:
    """Standard deviation of Y: RMS contrast (Peli, J. Opt. Soc. Am. A 7, 1990), [B] in 0..0.5."""
    return y.flatten(1).std(dim=1, correction=0)


def mirror_symmetry(y: Tensor) -> Tensor:
    """Pearson correlation of Y with its left-right mirror, [B] in −1..1; 1 for a flat picture.

    With Y split into a mirror-even part E and a mirror-odd part O about the mean it is (|E|² − |O|²) / (|E|² + |O|²).
    """
    centred = y - y.mean(dim=(1, 2), keepdim=True)
    total = centred.square().sum(dim=(1, 2))
    mirrored = (centred * centred.flip(2)).sum(dim=(1, 2))
    return torch.where(_flat(y), torch.ones_like(total), mirrored / total.clamp(min=1e-20))


def palettes(images: Tensor) -> Tensor:
    """Share of each picture's pixels in each of 8 x 8 x 8 RGB bins: float64 [B, 512], rows sum to 1."""
    bins = (_unit_range(images) * LEVELS).long().clamp(max=LEVELS - 1)  # [B, 3, H, W]
    index = ((bins[:, 0] * LEVELS + bins[:, 1]) * LEVELS + bins[:, 2]).flatten(1)
    counts = torch.zeros(index.shape[0], LEVELS**3, dtype=torch.float64, device=images.device)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    return counts / index.shape[1]


def palette_statistics(shares: Tensor) -> dict[str, float]:
    """Over a set of pictures, from `palettes` [N, 512], in bits.

    palette_entropy: H(mean p), how many colours the set as a whole uses (Shannon entropy), 0..9.
    palette_divergence: H(mean p) − mean H(p), how much palettes differ from picture to picture (Jensen–Shannon
    divergence, Lin, IEEE Trans. Inf. Theory 37, 1991), 0 where all have the same.
    """
    pooled = float(_entropy_bits(shares.mean(dim=0, keepdim=True))[0])
    return {"palette_entropy": pooled, "palette_divergence": pooled - float(_entropy_bits(shares).mean())}


def _entropy_bits(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum(dim=1) / torch.log(shares.new_tensor(2.0))


def _flat(y: Tensor) -> Tensor:
    return y.flatten(1).var(dim=1, correction=0) < FLAT_VARIANCE


def _hann(length: int, like: Tensor) -> Tensor:
    return torch.hann_window(length, periodic=True, dtype=like.dtype, device=like.device)


def _unit_range(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape:
        raise ValueError(f"images is {images.dtype} {list(images.shape)}; expected floating point [B, 3, H, W]")
    return (images.float() / 2 + 0.5).clamp(0, 1)
