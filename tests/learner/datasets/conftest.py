"""Small pictures, and Pick-a-Pic parquet files made of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image


def encoded(colour: Any = (255, 0, 0), mode: str = "RGB", size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format=kind)
    return buffer.getvalue()


def pick_a_pic_row(number: int, **changes: Any) -> dict[str, Any]:
    """Row `number`: the red picture is preferred to the blue one; captions differ."""
    return {
        "caption": f"caption {number}",
        "jpg_0": encoded((255, 0, number)),
        "jpg_1": encoded((0, number, 255)),
        "label_0": 1.0,
        "label_1": 0.0,
        "num_example_per_prompt": 1 + number % 3,
        "has_label": True,
        "are_different": True,
        "annotator": ("kim", "lee")[number % 2],
        **changes,
    }


def write_parquet(path: Path, rows: list[dict[str, Any]], group_rows: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group_rows)
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two files of 7 and 5 rows, three rows a row group."""
    folder = tmp_path / "shards"
    write_parquet(folder / "a.parquet", [pick_a_pic_row(n) for n in range(7)])
    write_parquet(folder / "b.parquet", [pick_a_pic_row(n) for n in range(7, 12)])
    return folder


def hub_layout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of 12 rows as the hub lays it out, which `datasets` resolves by its files' names."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    rows = [pick_a_pic_row(n) for n in range(12)]
    for number in range(2):
        part = rows[number * 7 : number * 7 + 7]
        write_parquet(folder / "hub" / "data" / f"train-{number:05d}-of-00002.parquet", part)
    write_parquet(folder / "hub" / "data" / "validation_unique-00000-of-00001.parquet", rows[:2])
    return folder / "hub"
