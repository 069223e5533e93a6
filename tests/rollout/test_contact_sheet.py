"""Contact sheets: every picture in its place, pixel for pixel, captions inside the sheet, the same bytes each time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from rollout.contact_sheet import before_after, grid, shown, wrapped

LONG = "a small red circle on the left and a large blue square on the right on a white background"


def opened(png: bytes) -> np.ndarray:
    """uint8 [H, W, 3]"""
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def pictures(count: int, size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def place_of(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Where (x, y) `picture`, as shown, lies in the sheet; fails unless it is there once."""
    wanted = np.asarray(shown(picture))
    height, width = wanted.shape[:2]
    rows, columns = np.nonzero((sheet == wanted[0, 0]).all(axis=2))
    found = [
        (int(x), int(y))
        for y, x in zip(rows, columns, strict=True)
        if np.array_equal(sheet[y : y + height, x : x + width], wanted)
    ]
    assert len(found) == 1
    return found[0]


def test_before_and_after_lie_side_by_side_in_reading_order() -> None:
    before, after = pictures(6, seed=1), pictures(6, seed=2)
    sheet = opened(before_after(before, after, [f"prompt {n}" for n in range(6)], columns=3))
    left = [place_of(sheet, picture) for picture in before]
    right = [place_of(sheet, picture) for picture in after]
    assert left == sorted(left, key=lambda place: (place[1], place[0]))
    assert len({y for _, y in left}) == 2 and len({x for x, _ in left}) == 3
    assert [(x + 128 + 3, y) for x, y in left] == right


def test_small_pictures_are_enlarged_pixel_by_pixel_and_large_ones_reduced() -> None:
    picture = pictures(1)[0]
    enlarged = np.asarray(shown(picture))
    assert enlarged.shape == (128, 128, 3)
    assert np.array_equal(enlarged[::2, ::2], picture) and np.array_equal(enlarged[1::2, 1::2], picture)
    assert shown(pictures(1, size=512)[0]).size == (256, 256)
    assert shown(np.zeros((768, 512, 3), dtype=np.uint8)).size == (256, 384)
    assert shown(np.zeros((256, 256, 3), dtype=np.uint8)).size == (256, 256)


def test_heads_and_captions_are_drawn_and_nothing_is_cut_off() -> None:
    black = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    plain = opened(before_after(black, black, ["", ""], heads=("", ""), columns=1))
    with_heads = opened(before_after(black, black, ["", ""], columns=1))
    with_text = opened(before_after(black, black, [LONG, "short"], columns=1))
    ink = (plain < 200).any(axis=2).sum()
    assert (with_heads < 200).any(axis=2).sum() > ink
    assert with_text.shape[0] > with_heads.shape[0], "a caption of several lines makes its row higher"
    assert (with_text[-5:] == 255).all() and (with_text[:, -5:] == 255).all(), "the margin stays empty"


def test_a_caption_is_shown_whole() -> None:
    font = ImageFont.load_default(size=13)
    lines = wrapped(LONG, font, 128)
    assert " ".join(lines) == LONG and len(lines) > 2
    assert all(font.getlength(line) <= 128 for line in lines)
    assert wrapped("", font, 128) == [""]


def test_the_same_pictures_give_the_same_bytes() -> None:
    images = pictures(5)
    captions = [LONG] * 5
    assert grid(images, captions) == grid(images.copy(), list(captions))
    assert before_after(images, images, captions) == before_after(images, images, captions)


def test_a_full_grid_where_the_number_allows_it() -> None:
    images = pictures(16)
    sheet = opened(before_after(images, images[::-1].copy(), ["x"] * 16))
    assert sheet.shape[1] == 4 * (2 * 128 + 3 + 14) + 14
    assert opened(grid(images, ["x"] * 16)).shape[1] == 4 * (128 + 14) + 14
    assert opened(grid(images[:1], ["x"])).shape[1] == 128 + 2 * 14


def test_what_cannot_be_laid_out_is_refused() -> None:
    images = pictures(2)
    with pytest.raises(ValueError, match="side by side"):
        before_after(images, pictures(3), ["a", "b"])
    with pytest.raises(ValueError, match="2 pictures but 1 captions"):
        grid(images, ["a"])
    with pytest.raises(ValueError, match="float32"):
        grid(images.astype(np.float32), ["a", "b"])
    with pytest.raises(ValueError, match="N > 0"):
        grid(images[:0], [])
