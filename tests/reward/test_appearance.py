"""Each statistic on pictures made for it: blur, vignette, desaturation, mirrors, gradings, by amounts worked out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from configs.statistics import APPEARANCE
from reward.appearance import (
    appearance,
    brightness_spread,
    depth_of_field,
    high_frequency,
    luma,
    mirror_symmetry,
    palette_statistics,
    palettes,
    saturation,
)

SIZE = 64
COLUMN = torch.arange(SIZE).float().expand(SIZE, SIZE)
ROW = COLUMN.T


def wave(cycles: int, along: Tensor = COLUMN, phase: float = 0.0) -> Tensor:
    return torch.cos(2 * math.pi * cycles * along / SIZE + phase)


def grey(y: Tensor) -> Tensor:
    """[1, 3, H, W] in [-1, 1] of luma [H, W] in [0, 1]."""
    return (2 * y - 1).expand(1, 3, *y.shape)


def test_luma_is_that_of_bt601() -> None:
    x = torch.eye(3).view(3, 3, 1, 1)
    assert luma(x).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


def test_high_frequency_is_the_share_of_the_fast_wave() -> None:
    """Amplitudes 0.2 at 4/64 and 0.1 at 24/64 cycles per pixel: 0.01 / (0.04 + 0.01) = 0.2."""
    picture = 0.5 + 0.2 * wave(4) + 0.1 * wave(24, ROW)
    assert high_frequency(picture[None]).item() == pytest.approx(0.2, abs=1e-4)
    assert high_frequency((0.5 + 0.1 * wave(24))[None]).item() == pytest.approx(1.0, abs=1e-4)
    assert high_frequency((0.5 + 0.1 * wave(4))[None]).item() == pytest.approx(0.0, abs=1e-4)


def test_blur_lowers_high_frequency_by_its_response() -> None:
    """[1 2 1]/4 along the rows multiplies a wave of f cycles per pixel by cos²(πf), its energy by cos⁴(πf)."""
    picture = 0.5 + 0.2 * wave(4) + 0.1 * wave(24)
    blurred = (picture.roll(1, 1) + 2 * picture + picture.roll(-1, 1)) / 4
    slow, fast = 0.04 * math.cos(math.pi * 4 / 64) ** 4, 0.01 * math.cos(math.pi * 24 / 64) ** 4
    assert high_frequency(blurred[None]).item() == pytest.approx(fast / (slow + fast), abs=1e-4)
    assert fast / (slow + fast) == pytest.approx(0.00576, abs=1e-5)  # from 0.2


def test_a_blurred_border_raises_depth_of_field() -> None:
    """Halving the contrast outside the centre divides its gradient energy by 4: log2 rises from 0 to 2."""
    sharp = 0.5 + 0.2 * wave(16, phase=0.3) + 0.2 * wave(16, ROW, phase=0.3)
    border = torch.ones(SIZE, SIZE)
    border[16:48, 16:48] = 0
    vignette = 0.5 + (sharp - 0.5) * (1 - 0.5 * border)
    assert depth_of_field(sharp[None]).item() == pytest.approx(0.0, abs=0.05)
    assert depth_of_field(vignette[None]).item() == pytest.approx(2.0, abs=0.1)
    assert depth_of_field((0.5 + (sharp - 0.5) * (0.5 + 0.5 * border))[None]).item() == pytest.approx(-2.0, abs=0.2)
    assert depth_of_field(torch.rand(2, 1, 1)).tolist() == depth_of_field(torch.rand(2, 3, 3)).tolist() == [0.0, 0.0]


def test_saturation_of_one_colour_and_of_two() -> None:
    """Red: rg = 255, yb = 127.5, no spread: 0.3 · √(255² + 127.5²) = 85.53. Red beside cyan: means 0, spread √(...)."""
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    length = math.hypot(255, 127.5)
    assert saturation(red).item() == pytest.approx(0.3 * length) == pytest.approx(85.53, abs=0.01)
    both = torch.cat([red, 1 - red], dim=3)
    assert saturation(both).item() == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_desaturation_lowers_saturation_in_proportion(share: float) -> None:
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    faded = (1 - share) * x + share * luma(x)[:, None]
    torch.testing.assert_close(saturation(faded), (1 - share) * saturation(x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(luma(faded), luma(x))


def test_brightness_spread_of_two_halves_and_of_flattened_light() -> None:
    halves = (COLUMN >= SIZE // 2).float()
    assert brightness_spread(halves[None]).item() == pytest.approx(0.5)
    assert brightness_spread(0.5 + 0.3 * (halves[None] - 0.5)).item() == pytest.approx(0.15)
    # a wave of amplitude a has deviation a / √2
    assert brightness_spread((0.5 + 0.2 * wave(4))[None]).item() == pytest.approx(0.2 / math.sqrt(2), abs=1e-5)


def test_mirror_symmetry_is_even_against_odd_energy() -> None:
    centred = COLUMN - (SIZE - 1) / 2
    even, odd = torch.cos(2 * math.pi * centred / SIZE), torch.sin(2 * math.pi * centred / SIZE)
    for a, b in ((0.3, 0.0), (0.0, 0.3), (0.3, 0.1), (0.2, 0.2)):
        expected = (a * a - b * b) / (a * a + b * b)
        assert mirror_symmetry((0.5 + a * even + b * odd)[None]).item() == pytest.approx(expected, abs=1e-5)


def solid(*colours: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colours).float().view(-1, 3, 1, 1).expand(-1, 3, 4, 4) * 2 - 1


def test_palettes_count_colours_in_bits() -> None:
    different = palette_statistics(palettes(solid((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))))
    assert different == pytest.approx({"palette_entropy": 2.0, "palette_divergence": 2.0})
    same = palette_statistics(palettes(solid(*[(0.2, 0.6, 0.1)] * 4)))
    assert same == pytest.approx({"palette_entropy": 0.0, "palette_divergence": 0.0}, abs=1e-12)
    halves = torch.cat([solid((0, 0, 0), (0, 0, 0)), solid((1, 1, 1), (1, 0, 0))], dim=3)
    # pooled: 1/2, 1/4, 1/4 → 1.5 bits; each alone 1 bit
    expected = {"palette_entropy": 1.5, "palette_divergence": 0.5}
    assert palette_statistics(palettes(halves)) == pytest.approx(expected)
    assert torch.allclose(palettes(halves).sum(dim=1), torch.ones(2, dtype=torch.float64))


def test_one_grading_for_all_lowers_both_palette_statistics() -> None:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    images = images * 0.3 + torch.linspace(-0.6, 0.6, 6).view(6, 1, 1, 1)
    graded = 0.3 * images + 0.7 * torch.tensor([0.9, 0.2, -0.6]).view(3, 1, 1)  # towards orange
    before, after = (palette_statistics(palettes(x)) for x in (images, graded))
    assert after["palette_entropy"] < before["palette_entropy"] - 1
    assert after["palette_divergence"] < before["palette_divergence"] - 0.3


def test_flat_and_single_pixel_pictures_have_defined_values() -> None:
    for picture in (torch.zeros(1, 3, 8, 8), torch.full((1, 3, 1, 1), 0.3), torch.full((1, 3, 33, 7), -1.0)):
        found = {name: value.item() for name, value in appearance(picture).items()}
        zero = {"high_frequency": 0, "depth_of_field": 0, "saturation": 0, "brightness_spread": 0}
        assert found == pytest.approx({**zero, "mirror_symmetry": 1.0}, abs=1e-3)


def test_batched_equals_alone_and_names_are_the_configurations() -> None:
    images = torch.rand(3, 3, 20, 31, generator=torch.Generator().manual_seed(2)) * 2 - 1
    together = appearance(images)
    for row in range(3):
        alone = appearance(images[row : row + 1])
        assert {n: v.item() for n, v in alone.items()} == pytest.approx({n: v[row].item() for n, v in together.items()})
    names = [*together, *palette_statistics(palettes(images))]
    assert [f"appearance/{name}" for name in names] == list(APPEARANCE)
    assert all(value.dtype == torch.float32 for value in together.values())
    with pytest.raises(ValueError, match=r"expected floating point \[B, 3, H, W\]"):
        appearance(torch.zeros(3, 8, 8))


def test_grey_pictures_through_the_front_door() -> None:
    found = appearance(grey(0.5 + 0.2 * wave(4) + 0.1 * wave(24)))
    assert found["high_frequency"].item() == pytest.approx(0.2, abs=1e-4)
    assert found["saturation"].item() == pytest.approx(0.0, abs=1e-3)
