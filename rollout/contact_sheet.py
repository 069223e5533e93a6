"""Contact sheets: grids of pictures with their captions, as PNG bytes; the same pictures always give the same bytes.

Shapes: N pictures, uint8 [N, h, w, 3]. Small pictures are enlarged by whole numbers without smoothing, so that every
pixel that the model made can be seen; large ones are reduced.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _HEAD_INK = (255, 255, 255), (40, 40, 40), (110, 110, 110)
_CELL_PIXELS = 144  # pictures are shown about this wide
_LARGEST_PIXELS = 256  # and never wider
_GAP = 14
_PAIR_GAP = 3
_FONT_PIXELS = 13
_LINE_PIXELS = 17


def before_after(
    before: np.ndarray,
    after: np.ndarray,
    captions: Sequence[str],
    *,
    heads: tuple[str, str] = ("before", "after"),
    columns: int | None = None,
) -> bytes:
    """A PNG that shows each picture of `before` beside its counterpart in `after`, caption underneath, heads on top.

    before, after: uint8 [N, h, w, 3], the same prompts and seeds in the same order. `columns`: pairs in a row.
    Raises ValueError when the numbers or shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(f"pictures before are {before.shape} but after {after.shape}; they are shown side by side")
    _check(before, captions)
    cells = [_beside(shown(a), shown(b)) for a, b in zip(before, after, strict=True)]
    return _sheet(cells, captions, heads, columns or _columns(len(cells), aspect=2))


def grid(images: np.ndarray, captions: Sequence[str], *, columns: int | None = None) -> bytes:
    """A PNG of pictures uint8 [N, h, w, 3] with their captions. Raises ValueError when the numbers differ."""
    _check(images, captions)
    return _sheet([shown(image) for image in images], captions, (), columns or _columns(len(images), aspect=1))


def shown(picture: np.ndarray) -> Image.Image:
    """The picture uint8 [h, w, 3] at the size it is shown: enlarged pixel by pixel, or reduced with smoothing."""
    image = Image.fromarray(picture)
    if image.width > _LARGEST_PIXELS:
        size = (_LARGEST_PIXELS, max(1, round(image.height * _LARGEST_PIXELS / image.width)))
        return image.resize(size, Image.Resampling.LANCZOS)
    times = max(1, round(_CELL_PIXELS / image.width))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _check(images: np.ndarray, captions: Sequence[str]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
        raise ValueError(f"expected pictures uint8 [N, h, w, 3] with N > 0, got {images.dtype} {images.shape}")
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} pictures but {len(captions)} captions")


def _columns(count: int, aspect: int) -> int:
    """About as wide as high or wider, with few empty places; cells are `aspect` times as wide as high."""
    square = math.sqrt(count / aspect)
    return min(range(math.ceil(square), math.ceil(1.5 * square) + 1), key=lambda columns: -count % columns)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    pair = Image.new("RGB", (left.width + _PAIR_GAP + right.width, left.height), _PAPER)
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + _PAIR_GAP, 0))
    return pair


def _sheet(cells: list[Image.Image], captions: Sequence[str], heads: tuple[str, ...], columns: int) -> bytes:
    """Rows of cells; each row is as high as its longest caption needs."""
    font = ImageFont.load_default(size=_FONT_PIXELS)
    width, height = cells[0].size
    texts = [wrapped(caption, font, width) for caption in captions]
    starts = range(0, len(cells), columns)
    text_heights = [_LINE_PIXELS * max(len(lines) for lines in texts[start : start + columns]) for start in starts]
    head = _LINE_PIXELS + 4 if heads else 0
    sheet = Image.new(
        "RGB",
        (columns * (width + _GAP) + _GAP, _GAP + head + sum(height + 4 + text + _GAP for text in text_heights)),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        for number, text in enumerate(heads):
            centre = _GAP + column * (width + _GAP) + width * (2 * number + 1) / (2 * len(heads))
            draw.text((centre, _GAP), text, fill=_HEAD_INK, font=font, anchor="ma")
    y = _GAP + head
    for start, text_height in zip(starts, text_heights, strict=True):
        for column, index in enumerate(range(start, min(start + columns, len(cells)))):
            x = _GAP + column * (width + _GAP)
            sheet.paste(cells[index], (x, y))
            for number, line in enumerate(texts[index]):
                draw.text((x, y + height + 4 + number * _LINE_PIXELS), line, fill=_INK, font=font)
        y += height + 4 + text_height + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines no wider than `width` pixels where words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
