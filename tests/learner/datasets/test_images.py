"""Bytes to RGB: the stated rule for every kind of picture, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from learner.datasets.images import MIN_SIDE, decode_image, to_pixels
from learner.datasets.rows import DataError


def save(picture: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **more)
    return buffer.getvalue()


def first_pixel(data: bytes) -> tuple[int, int, int]:
    picture = decode_image(data, "here")
    assert picture.mode == "RGB"
    return picture.getpixel((0, 0))


def test_each_mode_by_its_rule() -> None:
    size = (8, 8)
    assert first_pixel(save(Image.new("RGB", size, (10, 20, 30)))) == (10, 20, 30)
    assert first_pixel(save(Image.new("L", size, 77))) == (77, 77, 77)
    assert first_pixel(save(Image.new("1", size, 1))) == (255, 255, 255)
    assert first_pixel(save(Image.new("RGBA", size, (10, 20, 30, 0)))) == (255, 255, 255)
    assert first_pixel(save(Image.new("RGBA", size, (0, 0, 0, 51)))) == (204, 204, 204)
    assert first_pixel(save(Image.new("LA", size, (0, 255)))) == (0, 0, 0)
    assert first_pixel(save(Image.new("CMYK", size, (0, 255, 255, 0)), "TIFF")) == (255, 0, 0)
    red, green, blue = first_pixel(save(Image.new("CMYK", size, (0, 255, 255, 0)), "JPEG"))
    assert red > 250 and green < 5 and blue < 5


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    for value, wanted in ((0, 0), (257, 1), (32768, 128), (65535, 255)):
        picture = Image.fromarray(np.full((8, 8), value, dtype=np.uint16))
        assert first_pixel(save(picture)) == (wanted, wanted, wanted)


def test_transparency_of_palette_and_truecolour() -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([9, 9, 9, 200, 200, 200])
    assert first_pixel(save(palette)) == (9, 9, 9)
    assert first_pixel(save(palette, transparency=0)) == (255, 255, 255)
    assert first_pixel(save(Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3))) == (255, 255, 255)


def test_orientation_is_applied() -> None:
    picture = Image.new("RGB", (8, 16), "black")
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    assert decode_image(save(picture, "JPEG", exif=exif), "here").size == (16, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, MIN_SIDE - 1)])
def test_tiny_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=rf"^picture row 3 has {size[0]} x {size[1]} pixels; .* at least 8$"):
        decode_image(save(Image.new("RGB", size)), "row 3")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_corrupt_and_truncated_are_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = save(Image.fromarray(noise), kind)
    for kept in (0, 3, len(data) // 2):
        with pytest.raises(DataError, match=r"^picture row 3 (cannot be decoded|is empty)"):
            decode_image(data[:kept], "row 3")
    with pytest.raises(DataError, match="not a picture"):
        decode_image(b"<html>404</html>\n", "row 3")


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match="picture row 3 is too large"):
        decode_image(save(Image.new("RGB", (8, 8))), "row 3")


def test_pixels_are_resized_by_the_short_side_and_cropped() -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste((255, 255, 255), (15, 0, 25, 20))
    pixels = to_pixels(picture, 10)
    assert pixels.shape == (3, 10, 10) and pixels.dtype == torch.float32
    assert pixels[:, 5, 5].tolist() == [1, 1, 1] and pixels[:, 5, 0].tolist() == [-1, -1, -1]
    assert torch.equal(to_pixels(Image.new("RGB", (10, 10), (51, 0, 255)), 10)[:, 0, 0], torch.tensor([-0.6, -1, 1]))
    assert to_pixels(Image.new("RGB", (9, 13)), 10).shape == (3, 10, 10)
