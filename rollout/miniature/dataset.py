"""Renders a small data set of the miniature's world, for offline training, tests and examples.

    python -m rollout.miniature.dataset --out DIR --kind pairs --count 256
    python -m rollout.miniature.dataset --out DIR --kind images --count 256 --format parquet

pairs: the same caption twice, one picture that a person who wants `crisp` pictures prefers (`preference_data`, without
ties). images: captioned pictures in one finish. Formats: folder (win / lose files by key), jsonl (manifest and files),
parquet (one file, row groups of 64), webdataset (one tar). Each row also has its finish, to choose a taste by.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from rollout.miniature.preference_data import sample_pairs, scene_of
from rollout.miniature.world import FINISHES, caption, render

Kind = Literal["pairs", "images"]
Format = Literal["folder", "jsonl", "parquet", "webdataset"]
GROUP_ROWS = 64
_KINDS = {"finish": 0.7, "caption": 0.3}


@dataclass(frozen=True)
class RenderedRow:
    """One row: encoded PNGs by column, and the other columns."""

    images: dict[str, bytes]
    columns: dict[str, str]


def render_rows(kind: Kind, count: int, seed: int = 0, finish: str = "crisp") -> list[RenderedRow]:
    """`count` rows that depend on the arguments alone. `finish` is that of captioned images."""
    if kind == "pairs":
        pairs = sample_pairs(count, f"dataset/{seed}", kinds=_KINDS)
        rows = []
        for text, first, second, label in zip(pairs.captions, pairs.first, pairs.second, pairs.label, strict=True):
            win, lose = (first, second) if float(label) > 0.5 else (second, first)
            rows.append(RenderedRow({"win": png(win), "lose": png(lose)}, {"caption": text, "taste": "crisp"}))
        return rows
    rng = random.Random(f"dataset/{seed}")
    scenes = [scene_of("train", rng) for _ in range(count)]
    pictures = render(scenes, [finish] * count, torch.Generator().manual_seed(rng.getrandbits(62)))
    return [
        RenderedRow({"image": png(picture)}, {"caption": caption(scene), "finish": finish})
        for scene, picture in zip(scenes, pictures, strict=True)
    ]


def png(picture: Tensor) -> bytes:
    """A PNG of a picture float32 [3, h, w] in [-1, 1]."""
    pixels = ((picture.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_rows(rows: Sequence[RenderedRow], out: Path, form: Format) -> Path:
    """Write the rows below `out`; returns what `data.path` is to be."""
    out.mkdir(parents=True, exist_ok=True)
    if form == "folder":
        for name, data in _members(rows):
            (out / name).write_bytes(data)
        return out
    if form == "webdataset":
        path = out / "rows.tar"
        with tarfile.open(path, "w") as archive:
            for name, data in _members(rows):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return path
    if form == "parquet":
        return _write_parquet(rows, out / "rows.parquet")
    lines = []
    (out / "images").mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        names = {column: f"images/{number:06d}_{column}.png" for column in row.images}
        for column, name in names.items():
            (out / name).write_bytes(row.images[column])
        lines.append(json.dumps({**row.columns, **names}) + "\n")
    (out / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return out / "rows.jsonl"


def _members(rows: Iterable[RenderedRow]) -> Iterable[tuple[str, bytes]]:
    """File names by key, as folder and archive have them."""
    for number, row in enumerate(rows):
        for column, data in row.images.items():
            yield f"{number:06d}{'' if column == 'image' else '.' + column}.png", data
        yield f"{number:06d}.json", json.dumps(row.columns).encode()


def _write_parquet(rows: Sequence[RenderedRow], path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{**row.columns, **row.images} for row in rows])
    pyarrow.parquet.write_table(table, path, row_group_size=GROUP_ROWS)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Render and write; prints what to set."""
    parser = argparse.ArgumentParser(prog="python -m rollout.miniature.dataset", description="Render a data set.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--kind", choices=("pairs", "images"), default="pairs")
    parser.add_argument("--count", type=int, default=256, help="rows")
    parser.add_argument("--format", choices=("folder", "jsonl", "parquet", "webdataset"), default="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finish", choices=FINISHES, default="crisp", help="of captioned images")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error("--count must be at least 1")
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"--out {options.out} is not empty")
    path = write_rows(
        render_rows(options.kind, options.count, options.seed, options.finish), options.out, options.format
    )
    print(f"{options.count} rows: data.type={options.kind} data.path={path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
