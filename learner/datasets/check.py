"""Look at every row before a run does, and name every bad one.

    python -m learner.datasets.check DIR_OR_PARQUET [more ...]                 pairs as learner.train_spm reads them
    python -m learner.datasets.check --type pairs PATH [more ...]              as learner.main does: data.type=pairs
    python -m learner.datasets.check --type images --caption text PATH         data.type=images data.caption=text

With --type a PATH is a folder of files, a .jsonl manifest, or .parquet or .tar files, as data.path is. Names every bad
row with its file, every missing column, every picture that cannot be decoded, every file that cannot be read, then
counts. Exit status: 0 all rows are good, 1 some are not, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageChops
from pydantic import ValidationError

from configs.data import ImageData, PairData
from learner.datasets.examples import (
    columns_of,
    example_of,
    form_and_files,
    open_table,
    same_image,
    table_of,
    undecided,
)
from learner.datasets.images import decode_image
from learner.datasets.pairs import open_pairs
from learner.datasets.rows import DataError, PairRow
from learner.datasets.tables import Table

KINDS: dict[str, type[PairData | ImageData]] = {"pairs": PairData, "images": ImageData}
_SETTINGS = ("split", "format", "caption", "win", "lose", "image", "unequal_shapes")


def check(path: str | Path) -> tuple[int, list[str]]:
    """(good rows, a sentence for each thing that is wrong) of pairs as `learner.train_spm` reads them."""
    problems: list[str] = []
    try:
        source = open_pairs(path, problems=problems)
    except DataError as error:
        return 0, [str(error)]
    good = 0
    for block, size in enumerate(source.block_sizes()):
        for offset in range(size):
            try:
                row = source.row(block, offset)
            except DataError as error:
                problems.append(str(error))
                continue
            bad = list(_bad_pictures(row))
            problems += bad
            good += not bad
    return good, problems


def _bad_pictures(row: PairRow) -> Iterator[str]:
    for name, data in (("image 0", row.image_0), ("image 1", row.image_1)):
        try:
            decode_image(data, f"{row.key} {name}")
        except DataError as error:
            yield str(error)


def check_data_set(data: PairData | ImageData) -> tuple[int, int, list[str]]:
    """(good rows, rows without a preference, a sentence for each thing that is wrong), as `learner.main` reads them."""
    problems: list[str] = []
    good = undecided_rows = 0
    for table in _tables(data, problems):
        for block, size in enumerate(table.block_sizes()):
            for offset in range(size):
                try:
                    good += _is_example(table, block, offset, data)
                except Undecided:
                    undecided_rows += 1
                except DataError as error:
                    problems.append(str(error))
    return good, undecided_rows, problems


class Undecided(Exception):
    """A tie, or a row without a label: left out of training, and not bad."""


def _tables(data: PairData | ImageData, problems: list[str]) -> Iterator[Table]:
    """Each file's rows by themselves, so that one that cannot be read does not hide the others."""
    try:
        kind, files = form_and_files(data)
    except DataError as error:
        problems.append(str(error))
        return
    for file in files:
        try:
            yield table_of(kind, [file], data)
        except DataError as error:
            problems.append(str(error))
    if not problems and len(files) > 1:
        try:
            open_table(data)
        except DataError as error:
            problems.append(str(error))


def _is_example(table: Table, block: int, offset: int, data: PairData | ImageData) -> bool:
    """True; raises DataError for a row that a run would refuse, Undecided for one that it would leave out."""
    columns = columns_of(data)
    row = table.read(block, offset, [*columns, "has_label", "are_different"])
    if isinstance(data, PairData) and undecided(row.values):
        raise Undecided
    example = example_of(row, data)
    pictures = [decode_image(encoded, f"{name} of {example.where}") for name, encoded in example.images]
    same = len(pictures) == 2 and pictures[0].size == pictures[1].size
    if same and ImageChops.difference(*pictures).getbbox() is None:
        raise DataError(f"{example.where}: {same_image(*(column for column, _ in example.images))}")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the paths on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m learner.datasets.check", description="Look at every row.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="what data.path, or data.source, will be")
    parser.add_argument("--type", choices=list(KINDS), help="data.type of the run; without it, as learner.train_spm")
    for name in _SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"data.{name} of the run")
    options = parser.parse_args(arguments)
    settings = {name: value for name in _SETTINGS if (value := getattr(options, name)) is not None}
    if settings and options.type is None:
        parser.error(f"--{next(iter(settings)).replace('_', '-')} belongs to --type {' or '.join(KINDS)}")
    failed = [_failed(path, options.type, settings, parser) for path in options.paths]
    return 1 if any(failed) else 0


def _failed(path: str, kind: str | None, settings: dict[str, Any], parser: argparse.ArgumentParser) -> bool:
    """Print what is wrong at `path`, and how many rows are good; whether anything is wrong."""
    if kind is None:
        good, problems = check(path)
        counted = f"{good} good pairs"
    else:
        try:
            data = KINDS[kind].model_validate({"path": path, **settings})
        except ValidationError as error:
            first = error.errors()[0]
            parser.error(f"data.{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}")
        good, undecided_rows, problems = check_data_set(data)
        counted = f"{good} good {kind}" + (f", {undecided_rows} without a preference" if undecided_rows else "")
    for sentence in problems:
        print(sentence)
    print(f"{path}: {counted}, {len(problems)} problems")
    return bool(problems) or good == 0


if __name__ == "__main__":
    sys.exit(main())
