"""Renders a data set of the miniature's world, for offline training, preference models, tests and examples.

    python -m rollout.miniature.dataset --out DIR --kind pairs --count 256
    python -m rollout.miniature.dataset --out DIR --kind images --count 256 --format parquet
    python -m rollout.miniature.dataset --out DIR --kind preferences --count 24576

pairs: the same caption twice, one picture that a person who wants `crisp` pictures prefers (`preference_data`, without
ties). images: captioned pictures in one finish. Formats: folder (win / lose files by key), jsonl (manifest and files),
parquet (one file, row groups of 64), webdataset (one tar). Each row also has its finish, to choose a taste by.

preferences: every kind of pair of `preference_data`, ties too, in Pick-a-Pic's columns (parquet only), which
`python -m learner.train_spm` reads; the column `kind` says which.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch

from reward.images import png_bytes
from rollout.miniature.preference_data import KINDS, Pairs, sample_pairs, scene_of
from rollout.miniature.world import FINISHES, Split, caption, render

Kind = Literal["pairs", "images", "preferences"]
Format = Literal["folder", "jsonl", "parquet", "webdataset"]
GROUP_ROWS = 64
_OFFLINE_KINDS = {"finish": 0.7, "caption": 0.3}
_PART_ROWS = 512
"""Rows rendered together: what is in memory at a time."""


@dataclass(frozen=True)
class RenderedRow:
    """One row: encoded PNGs by column, and the other columns."""

    images: dict[str, bytes]
    columns: dict[str, str | float | int | bool]


def render_rows(
    kind: Kind, count: int, seed: int = 0, finish: str = "crisp", *, split: Split = "train"
) -> list[RenderedRow]:
    """`count` rows that depend on the arguments alone. `finish` is that of captioned images."""
    if kind == "images":
        return _captioned(count, seed, finish, split)
    kinds = KINDS if kind == "preferences" else _OFFLINE_KINDS
    pairs = sample_pairs(count, f"dataset/{seed}", split, kinds)
    return [_preference(pairs, row) if kind == "preferences" else _ordered(pairs, row) for row in range(count)]


def stream_rows(kind: Kind, count: int, seed: int = 0, finish: str = "crisp", **options: Any) -> Iterator[RenderedRow]:
    """`render_rows` in parts of at most `_PART_ROWS`, from seeds of their own; the first part has `seed` itself."""
    for first in range(0, count, _PART_ROWS):
        part = seed if first == 0 else random.Random(f"{seed}/{first}").getrandbits(62)
        yield from render_rows(kind, min(_PART_ROWS, count - first), part, finish, **options)


def _captioned(count: int, seed: int, finish: str, split: Split) -> list[RenderedRow]:
    rng = random.Random(f"dataset/{seed}")
    scenes = [scene_of(split, rng) for _ in range(count)]
    pictures = render(scenes, [finish] * count, torch.Generator().manual_seed(rng.getrandbits(62)))
    return [
        RenderedRow({"image": png_bytes(picture)}, {"caption": caption(scene), "finish": finish})
        for scene, picture in zip(scenes, pictures, strict=True)
    ]


def _ordered(pairs: Pairs, row: int) -> RenderedRow:
    """A pair as winner and loser."""
    first, second = png_bytes(pairs.first[row]), png_bytes(pairs.second[row])
    win, lose = (first, second) if float(pairs.label[row]) > 0.5 else (second, first)
    return RenderedRow({"win": win, "lose": lose}, {"caption": pairs.captions[row], "taste": "crisp"})


def _preference(pairs: Pairs, row: int) -> RenderedRow:
    """A pair in Pick-a-Pic's columns."""
    label = float(pairs.label[row])
    return RenderedRow(
        {"jpg_0": png_bytes(pairs.first[row]), "jpg_1": png_bytes(pairs.second[row])},
        {
            "caption": pairs.captions[row],
            "label_0": label,
            "label_1": 1 - label,
            "num_example_per_prompt": 1,
            "has_label": True,
            "are_different": True,
            "kind": pairs.kinds[row],
        },
    )


def write_rows(rows: Iterable[RenderedRow], out: Path, form: Format) -> Path:
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


def _write_parquet(rows: Iterable[RenderedRow], path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    remaining = iter(rows)
    first = next(remaining)
    schema = pyarrow.Table.from_pylist([{**first.columns, **first.images}]).schema
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(chain([first], remaining)):
            table = pyarrow.Table.from_pylist([{**row.columns, **row.images} for row in group], schema)
            writer.write_table(table)
    return path


def _groups(rows: Iterator[RenderedRow]) -> Iterator[list[RenderedRow]]:
    while group := list(islice(rows, GROUP_ROWS)):
        yield group


def main(arguments: Sequence[str] | None = None) -> int:
    """Render and write; prints what to set."""
    parser = argparse.ArgumentParser(prog="python -m rollout.miniature.dataset", description="Render a data set.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--kind", choices=("pairs", "images", "preferences"), default="pairs")
    parser.add_argument("--count", type=int, default=256, help="rows")
    parser.add_argument("--format", choices=("folder", "jsonl", "parquet", "webdataset"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finish", choices=FINISHES, default="crisp", help="of captioned images")
    parser.add_argument("--split", choices=("train", "heldout"), default="train", help="which captions")
    options = parser.parse_args(arguments)
    preferences = options.kind == "preferences"
    form: Format = options.format or ("parquet" if preferences else "folder")
    if options.count < 1:
        parser.error("--count must be at least 1")
    if preferences and form != "parquet":
        parser.error(f"--format {form} with --kind preferences: Pick-a-Pic's columns are parquet's only")
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"--out {options.out} is not empty")
    rows = stream_rows(options.kind, options.count, options.seed, options.finish, split=options.split)
    path = write_rows(rows, options.out, form)
    setting = f"data.source={path}" if preferences else f"data.type={options.kind} data.path={path}"
    print(f"{options.count} rows: {setting}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
