"""Picture files of every kind become the same RGB pixels; what cannot be decoded is refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reward import images
from reward.images import decode_image, image_tensor, png_bytes


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_rgb_greyscale_palette_and_cmyk() -> None:
    colour = Image.new("RGB", (3, 2), (200, 100, 50))
    assert decode_image(encoded(colour, "PNG")).getpixel((2, 1)) == (200, 100, 50)
    assert decode_image(encoded(Image.new("L", (3, 2), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(encoded(Image.new("1", (3, 2), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(colour.quantize(4), "PNG")).getpixel((0, 0)) == (200, 100, 50)
    cmyk = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert cmyk.mode == "RGB" and cmyk.getpixel((4, 4)) == (255, 0, 0)


def test_transparency_is_laid_over_white() -> None:
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 51))  # 20 % black over white: 255 * 0.8
    assert decode_image(encoded(half, "PNG")).getpixel((0, 0)) == (204, 204, 204)
    keyed = encoded(Image.new("L", (2, 2), 9), "PNG", transparency=9)
    assert decode_image(keyed).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("value", "level"), [(0, 0), (255, 0), (256, 1), (32768, 128), (65535, 255)])
def test_sixteen_bits_keep_the_upper_eight(value: int, level: int) -> None:
    deep = Image.fromarray(np.full((2, 2), value, dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        assert decode_image(encoded(deep, kind)).getpixel((1, 1)) == (level,) * 3


def test_exif_rotation_is_applied() -> None:
    wide = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(wide, "JPEG", exif=exif)).size == (2, 4)


def test_one_pixel_and_back_again() -> None:
    picture = decode_image(encoded(Image.new("RGB", (1, 1), (0, 128, 255)), "PNG"))
    tensor = image_tensor(picture)
    assert tensor.shape == (3, 1, 1) and tensor.flatten().tolist() == pytest.approx([-1.0, 1 / 255, 1.0], abs=1e-6)
    assert decode_image(png_bytes(tensor)).getpixel((0, 0)) == (0, 128, 255)
    assert decode_image(png_bytes(torch.tensor([-9.0, 9.0, 0.0]).view(3, 1, 1))).getpixel((0, 0)) == (0, 255, 128)


def test_what_cannot_be_decoded_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG"):
        (tmp_path / f"cut.{kind}").write_bytes(encoded(noise, kind)[:900])
        with pytest.raises(ValueError, match=rf"cut\.{kind} cannot be decoded"):
            decode_image(tmp_path / f"cut.{kind}")
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.jpg cannot be decoded .*: cannot identify image file$"):
        decode_image(str(tmp_path / "text.jpg"))
    with pytest.raises(ValueError, match="row 7 is empty"):
        decode_image(b"", name="row 7")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist"):
        decode_image(tmp_path / "nowhere.png")
    monkeypatch.setattr(images.Image, "MAX_IMAGE_PIXELS", 1000)
    for side in (40, 64):  # a warning, and an error
        with pytest.raises(ValueError, match="bomb is too large"):
            decode_image(encoded(Image.new("RGB", (side, side)), "PNG"), name="bomb")
