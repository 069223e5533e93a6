"""From the configuration to examples: pairs or captioned images, whatever the files' form; what is left out, and why.

    folder · JSONL · parquet · tar ─► table ─► where, limit, rows with a preference ─► order ─► Example

A pair's columns are `win` and `lose`, or Pick-a-Pic's (jpg_0, jpg_1, label_0), or those of pairs.jsonl (image_0,
image_1, preferred). Rows without a preference (ties, has_label false) are left out and counted; they are not bad.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.data import ImageData, OfflineData, PairData
from learner.datasets.files import files_below, find_files, hub_files
from learner.datasets.folder import INDEX
from learner.datasets.images import refuse_unequal_shapes
from learner.datasets.jsonl_table import JsonlTable
from learner.datasets.keyed_files import FolderTable, TarTable
from learner.datasets.order import Order
from learner.datasets.parquet_table import ParquetTable
from learner.datasets.rows import DataError
from learner.datasets.tables import BadRow, Row, Table

LABELLED = (("jpg_0", "jpg_1", "label_0"), ("image_0", "image_1", "preferred"))
"""Two images and which is preferred: a number (the share of votes for the first), or 0, 1 or "tie"."""
_OTHER_LABEL = {"label_0": "label_1"}
"""Column -> the one that makes a sum of 1 with it, where it is there."""
_FLAGS = ("has_label", "are_different")
_SUFFIXES = {".jsonl": "jsonl", ".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True)
class Example:
    """One row, ready to be decoded."""

    where: str
    """File and row, for messages."""
    caption: str
    images: tuple[tuple[str, bytes], ...]
    """Column and encoded image: (win, lose) or (image,)."""


class Examples:
    """The rows of a data set that a run trains on, in a seeded order without end."""

    def __init__(self, data: PairData | ImageData, seed: int) -> None:
        """Opens and indexes the files; no image is read. Raises DataError for what cannot be read or leaves no row."""
        self._data = data
        self._table = open_table(data)
        self.fingerprint = self._table.fingerprint
        self._kept = self._select()
        self.rows = sum(map(len, self._kept.values()))
        """Rows of one epoch."""
        if not sum(self._table.block_sizes()):
            raise DataError(f"{data.path}: holds no row; give data.path files with rows")
        if not self.rows:
            raise DataError(f"{data.path}: no row is left to train on; look at data.where and at the rows' preferences")
        self._blocks = list(self._kept)
        self._order = Order([len(self._kept[block]) for block in self._blocks], seed, data.shuffle_blocks)

    def example(self, position: int) -> Example:
        """The example at `position` (0, 1, 2, ..; an epoch after the other). Raises BadRow."""
        block, place = self._order.at(position)
        number = self._blocks[block]
        return example_of(self._table.read(number, self._kept[number][place], columns_of(self._data)), self._data)

    def substitute(self, position: int, attempt: int) -> int:
        """The position to take instead of a bad row's: the `attempt`-th (from 1) half an epoch further."""
        epoch, place = divmod(position, self.rows)
        return epoch * self.rows + (place + self.rows // 2 + attempt - 1) % self.rows

    def _select(self) -> dict[int, Sequence[int]]:
        """Block to the places of its rows that are taken, blocks without any left out."""
        wanted = {column: set(values) for column, values in self._data.where.items()}
        pairs = isinstance(self._data, PairData)
        labels = [*(names[2] for names in LABELLED), *_FLAGS] if pairs else []
        sizes = self._table.block_sizes()
        if not wanted and not pairs:
            return _first(dict(enumerate(map(range, sizes))), self._data.limit)
        seen: set[str] = set()
        self.left_out = 0
        rows = iter(self._table.scan([*wanted, *labels]))
        kept: dict[int, Sequence[int]] = {}
        for block, size in enumerate(sizes):
            places = array("q")
            for place, values in zip(range(size), rows, strict=False):
                seen |= wanted.keys() & values.keys()
                if values and any(str(values.get(column)) not in allowed for column, allowed in wanted.items()):
                    continue
                if pairs and undecided(values):
                    self.left_out += 1
                    continue
                places.append(place)
            if places:
                kept[block] = places
        if absent := sorted(wanted.keys() - seen):
            raise DataError(f"{self._data.path}: data.where names column {absent[0]}, which no row has")
        return _first(kept, self._data.limit)

    left_out: int = 0
    """Rows without a preference."""


def columns_of(data: PairData | ImageData) -> list[str]:
    """Every column that `example_of` may look at."""
    if isinstance(data, ImageData):
        return [data.caption, data.image]
    return [data.caption, data.win, data.lose, *(name for names in LABELLED for name in names), *_OTHER_LABEL.values()]


def example_of(row: Row, data: PairData | ImageData) -> Example:
    """The example in a row. Raises BadRow for a row without one, for a file twice, and for a pair of unequal shapes."""
    caption = row.text(data.caption)
    if isinstance(data, ImageData):
        return Example(row.where, caption, ((data.image, row.image(data.image)),))
    win, lose = ((name, row.image(name)) for name in _sides(row, data))
    if win[1] == lose[1]:
        raise BadRow(row.where, same_image(win[0], lose[0]))
    if data.unequal_shapes == "refuse":
        try:
            refuse_unequal_shapes(win, lose)
        except DataError as error:
            raise BadRow(row.where, str(error)) from error
    return Example(row.where, caption, (win, lose))


def same_image(win: str, lose: str) -> str:
    """Why a pair of these columns is bad."""
    return f"{win} and {lose} show the same image: there is no preference between them"


def open_table(data: OfflineData) -> Table:
    """The rows of `data.path`. Raises DataError where it is not there or cannot be read."""
    kind, files = form_and_files(data)
    return table_of(kind, files, data)


def form_and_files(data: OfflineData) -> tuple[str, Sequence[str | Path]]:
    """How `data.path` is read, and the files that it means (or the folder, or URLs). Raises DataError."""
    if data.split is not None:
        return "parquet", hub_files(str(data.path), data.split)
    path = data.path.expanduser()  # a shell leaves data.path=~/.. as it is
    kind = data.format if data.format != "auto" else _guess(path)
    if kind == "folder":
        if not path.is_dir():
            raise DataError(f"{path}: no such folder")
        return kind, [path]
    if kind == "jsonl" and (index := path / INDEX).is_file():
        return kind, [index]
    return kind, find_files(path, next(suffix for suffix, of in _SUFFIXES.items() if of == kind))


def table_of(kind: str, files: Sequence[str | Path], data: OfflineData) -> Table:
    """The rows of these files. Raises DataError where one cannot be read."""
    local = [Path(file) for file in files]
    if kind == "folder":
        return FolderTable(local[0])
    if kind == "jsonl":
        return JsonlTable(local)
    if kind == "webdataset":
        return TarTable(local)
    table = ParquetTable(files, kept_groups=2 * data.shuffle_blocks)
    table.refuse_other_columns()
    return table


def _guess(path: Path) -> str:
    """The format by the file names; a folder with none of the other kinds is a folder of files."""
    if not path.is_dir():
        if (kind := _SUFFIXES.get(path.suffix.lower())) is None:
            raise DataError(f"{path}: data.format is auto, and this is neither a folder nor .jsonl, .parquet or .tar")
        return kind
    present = {suffix for file in files_below(path) if (suffix := file.suffix.lower()) in _SUFFIXES}
    if len(present) > 1:
        raise DataError(f"{path}: holds {' and '.join(sorted(present))} files; set data.format to say which to read")
    return _SUFFIXES[present.pop()] if present else "folder"


def _first(kept: Mapping[int, Sequence[int]], limit: int | None) -> dict[int, Sequence[int]]:
    """The first `limit` rows."""
    left, result = limit, {}
    for block, places in kept.items():
        if left is not None:
            places = places[:left]
            left -= len(places)
        if len(places):
            result[block] = places
    return result


def undecided(values: Mapping[str, Any]) -> bool:
    """No preference was given, or it is a tie."""
    if any(values.get(flag) in (False,) for flag in _FLAGS):  # also 0, as some tools write it
        return True
    return values.get("label_0") == 0.5 or values.get("preferred") == "tie"


def _sides(row: Row, data: PairData) -> tuple[str, str]:
    """The columns of the preferred and of the rejected image. Raises BadRow."""
    present = {name for name in row.values if row.values[name] is not None}
    if data.win in present or data.lose in present:
        return data.win, data.lose
    for first, second, label in LABELLED:
        if not {first, second} & present:
            continue
        value = row.values.get(label)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 or value == 0.5:
            raise BadRow(row.where, f"column {label!r} is {value!r}; 0 to 1 without a tie is wanted")
        other = row.values.get(_OTHER_LABEL.get(label, ""))
        if other is not None and other != 1 - value and not math.isclose(other, 1 - value, abs_tol=1e-6):
            raise BadRow(row.where, f"column {label!r} is {value!r} and 'label_1' {other!r}; a sum of 1 is wanted")
        first_wins = value == 0 if label == "preferred" else value > 0.5
        return (first, second) if first_wins else (second, first)
    forms = [f"{data.win} and {data.lose}", *(", ".join(names) for names in LABELLED)]
    raise BadRow(row.where, f"no pair of images: columns {'; or '.join(forms)} are wanted, found {sorted(row.values)}")
