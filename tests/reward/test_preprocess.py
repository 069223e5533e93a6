"""Pictures as CLIP reads them: against torchvision's pieces, and the bicubic filter against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional as tv

from reward.preprocess import CLIP_MEAN, CLIP_STD, clip_pixels, resize_short_side


def by_hand(images: torch.Tensor, size: int) -> torch.Tensor:
    scale = size / min(images.shape[-2:])
    target = [int(images.shape[-2] * scale + 0.5), int(images.shape[-1] * scale + 0.5)]
    resized = tv.resize(images, target, interpolation=tv.InterpolationMode.BICUBIC, antialias=False)
    cropped = transforms.CenterCrop(size)(resized)
    return transforms.Normalize(CLIP_MEAN, CLIP_STD)((cropped / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (64, 64, 64),  # as it is
        (512, 512, 224),
        (300, 512, 224),  # wide
        (512, 300, 224),  # tall
        (333, 517, 224),  # odd
        (64, 67, 64),  # crop offset 1.5 → 2
        (64, 65, 64),  # crop offset 0.5 → 0
        (69, 64, 64),  # crop offset 2.5 → 2
        (48, 50, 64),  # upscaled
        (1, 1, 64),
        (1, 3, 64),
    ],
)
def test_agrees_with_torchvision(height: int, width: int, size: int) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height)) * 2.4 - 1.2
    pixels = clip_pixels(images, size)
    assert pixels.shape == (2, 3, size, size) and pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, by_hand(images, size), rtol=0, atol=1e-6)


def test_bicubic_is_the_filter_without_antialias() -> None:
    """Keys' cubic convolution with a = -0.75, pixel centres at half integers, borders repeated; float64."""

    def weights(x: float) -> list[float]:
        def kernel(d: float) -> float:
            a, d = -0.75, abs(d)
            return (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)

        return [kernel(x + 1 - n) for n in range(4)]

    def matrix(old: int, new: int) -> np.ndarray:
        rows = np.zeros((new, old))
        for out in range(new):
            centre = (out + 0.5) * old / new - 0.5
            left = int(np.floor(centre))
            for n, weight in enumerate(weights(centre - left)):
                rows[out, min(max(left - 1 + n, 0), old - 1)] += weight
        return rows

    image = torch.randn(1, 3, 30, 41, generator=torch.Generator().manual_seed(0))
    expected = matrix(30, 12) @ image[0].double().numpy() @ matrix(41, 16).T  # 41 * 12 / 30 = 16.4
    np.testing.assert_allclose(resize_short_side(image, 12)[0].numpy(), expected, atol=1e-5)


def test_short_side_rounds_to_nearest() -> None:
    assert resize_short_side(torch.zeros(1, 3, 30, 44), 12).shape[-2:] == (12, 18)  # 17.6
    assert resize_short_side(torch.zeros(1, 3, 30, 41), 12).shape[-2:] == (12, 16)  # 16.4


def test_half_precision_is_computed_in_float32() -> None:
    images = (torch.rand(1, 3, 40, 40) * 2 - 1).half()
    torch.testing.assert_close(clip_pixels(images, 64), clip_pixels(images.float(), 64), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.zeros(1, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8).byte()])
def test_refuses_what_is_no_picture(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected floating point \[B, 3, H, W\]"):
        clip_pixels(bad, 64)
