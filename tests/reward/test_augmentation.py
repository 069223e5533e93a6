"""What `reward.augmentation.vary` changes, and by how much."""

import pytest
import torch

from reward.augmentation import vary

NOISE = {1: 0.08, 4: 0.06, 16: 0.04, 64: 0.04}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_vary_changes_each_picture_alone_and_by_its_seed() -> None:
    same = torch.zeros(2, 3, 64, 64)
    once, again = (vary(same, seeded(5), contrast=0.15, noise=NOISE) for _ in range(2))
    assert torch.equal(once, again) and not torch.equal(once[0], once[1])
    assert not torch.equal(once, vary(same, seeded(6), contrast=0.15, noise=NOISE))
    assert not same.any()  # the pictures themselves are left as they were


def test_vary_has_the_stated_strength() -> None:
    varied = vary(torch.zeros(1000, 3, 64, 64), seeded(0), contrast=0.15, noise=NOISE)
    # A picture without contrast keeps none: what is left is the noise. A strength uniform in [0, S] and a unit normal
    # give E[x^2] = S^2 / 3; at an output pixel the bilinear weights of two cells (grids 4, 16) shrink it, below.
    weights = {1: 1.0, 4: mean_square_weight(4), 16: mean_square_weight(16), 64: 1.0}
    expected = sum(largest**2 / 3 * weights[cells] for cells, largest in NOISE.items())
    assert varied.square().mean().item() == pytest.approx(expected, rel=0.1)
    assert abs(varied.mean().item()) < 0.002


def mean_square_weight(cells: int) -> float:
    """Mean over output pixels of the summed squares of bilinear weights, from the pixel positions alone."""
    squares = []
    for pixel in range(64):
        place = min(max((pixel + 0.5) * cells / 64 - 0.5, 0.0), cells - 1.0)
        right = place - int(place)
        squares.append((1 - right) ** 2 + right**2)
    return (sum(squares) / 64) ** 2


def test_vary_keeps_the_mean_and_scales_contrast_about_it() -> None:
    picture = torch.full((50, 3, 64, 64), -0.5)
    picture[..., :32] = 0.1  # mean -0.2, +-0.3 about it
    varied = vary(picture, seeded(0), contrast=0.15, noise={})
    factor = (varied[..., 0] + 0.2) / 0.3
    torch.testing.assert_close(varied[..., 63], -0.2 - 0.3 * factor)
    assert factor.min() >= 0.85 and factor.max() <= 1.15 and factor.max() - factor.min() > 0.2


def test_without_contrast_and_noise_pictures_stay_as_they_are() -> None:
    pictures = torch.rand(2, 3, 8, 12, generator=seeded(1)) * 2 - 1
    torch.testing.assert_close(vary(pictures, seeded(0), contrast=0, noise={}), pictures)


def test_varied_pictures_stay_in_range() -> None:
    varied = vary(torch.ones(4, 3, 8, 12), seeded(0), contrast=0, noise={1: 0.5, 3: 0.5})
    assert varied.shape == (4, 3, 8, 12) and varied.max() == 1 and varied.min() >= -1 and (varied < 1).any()
