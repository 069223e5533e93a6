"""Parquet, local or remote: a row group is a block. In memory: the files' footers, and a few row groups.

A remote file (hf://, s3://, ...) is read by ranges through fsspec, nothing is stored: any row group can be read at any
time, so that a streamed run has the order of a local one and resumes without reading what came before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet

from learner.datasets.files import fingerprint, is_remote
from learner.datasets.rows import DataError
from learner.datasets.tables import BadRow, Row


class ParquetTable:
    """Rows of one or more .parquet files; images are bytes, `{bytes, path}`, or paths relative to the file."""

    def __init__(self, files: Sequence[str | Path], kept_groups: int, *, problems: list[str] | None = None) -> None:
        """Reads the footers.

        files: local paths, or URLs that fsspec opens.
        kept_groups: row groups held in memory, with the columns that are asked for.
        problems: takes one sentence for each file that is no parquet, which is then left out, instead of raising.

        Raises DataError for a file that is no parquet.
        """
        self.files: list[str | Path] = []
        self._metadata: list[Any] = []
        for file in files:
            try:
                self._metadata.append(_footer(file))
                self.files.append(file)
            except DataError as error:
                if problems is None:
                    raise
                problems.append(str(error))
        self._groups = [
            (place, number)
            for place, metadata in enumerate(self._metadata)
            for number in range(metadata.num_row_groups)
            if metadata.row_group(number).num_rows
        ]
        self._first_rows = [_first_rows(metadata) for metadata in self._metadata]
        self._kept_groups = kept_groups
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.files, [metadata.num_rows for metadata in self._metadata])

    def columns(self, place: int) -> tuple[str, ...]:
        """Of the file at `place`."""
        return tuple(self._metadata[place].schema.to_arrow_schema().names)

    def refuse_other_columns(self) -> None:
        """Raises DataError where a file has other columns than the first."""
        for place, file in enumerate(self.files):
            if differ := set(self.columns(place)) ^ set(self.columns(0)):
                raise DataError(f"{file}: has other columns than {self.files[0]}: {', '.join(sorted(differ))}")

    def block_sizes(self) -> list[int]:
        return [self._metadata[place].row_group(number).num_rows for place, number in self._groups]

    def blocks_of(self, place: int) -> list[int]:
        """The blocks that are the file at `place`."""
        return [block for block, (found, _) in enumerate(self._groups) if found == place]

    def where(self, block: int, offset: int) -> str:
        """File and row, for messages."""
        place, number = self._groups[block]
        return f"{self.files[place]} row {self._first_rows[place][number] + offset}"

    def read(self, block: int, offset: int, columns: Sequence[str] | None) -> Row:
        """One row with those of `columns` that it has; None: all. Raises BadRow.

        A remote file that cannot be reached raises what its file system does: the row may be good, and the ranks are
        started again from the last checkpoint.
        """
        place, number = self._groups[block]
        there = self.columns(place)
        wanted = tuple(name for name in there if columns is None or name in columns)
        where = self.where(block, offset)
        try:
            group = self._group(place, number, wanted)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and is_remote(self.files[place]):
                raise
            raise BadRow(where, f"row group {number} cannot be read: {_first_line(error)}") from error
        values = {name: group.column(name)[offset].as_py() for name in wanted}
        return Row(where, values or dict.fromkeys(there), Path(self.files[place]).parent)

    def scan(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        for place in range(len(self.files)):
            for rows in self.scan_file(place, columns):
                yield from rows

    def scan_file(self, place: int, columns: Sequence[str]) -> Iterator[list[Mapping[str, Any]]]:
        """These columns of every row of the file at `place`, a list for each of its blocks. Raises DataError."""
        wanted = [name for name in self.columns(place) if name in columns]
        numbers = [number for found, number in self._groups if found == place]
        if not wanted:
            nothing: Mapping[str, Any] = {}
            yield from ([nothing] * self._metadata[place].row_group(number).num_rows for number in numbers)
            return
        with _opened(self.files[place], self._metadata[place]) as opened:
            for number in numbers:
                try:
                    rows = opened.read_row_group(number, columns=wanted).to_pylist()
                except (pyarrow.ArrowException, OSError) as error:
                    reason = f"row group {number} cannot be read: {_first_line(error)}"
                    raise DataError(f"{self.files[place]}: {reason}") from error
                yield rows

    def _group(self, place: int, number: int, columns: tuple[str, ...]) -> Any:
        key = (place, number, columns)
        if key not in self._kept:
            while len(self._kept) >= self._kept_groups:
                self._kept.popitem(last=False)
            with _opened(self.files[place], self._metadata[place]) as opened:
                self._kept[key] = opened.read_row_group(number, columns=list(columns))
        self._kept.move_to_end(key)
        return self._kept[key]


@contextmanager
def _opened(file: str | Path, metadata: Any = None) -> Iterator[pyarrow.parquet.ParquetFile]:
    with (
        fsspec.open(str(file), "rb") if is_remote(file) else Path(file).open("rb") as raw,
        pyarrow.parquet.ParquetFile(raw, metadata=metadata) as opened,
    ):
        yield opened


def _footer(file: str | Path) -> Any:
    try:
        with _opened(file) as opened:
            metadata = opened.metadata
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read (truncated, or not a parquet file): {_first_line(error)}") from error
    names = metadata.schema.to_arrow_schema().names
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{file}: has column {twice[0]} more than once; rename or remove one of them")
    return metadata


def _first_rows(metadata: Any) -> list[int]:
    """Row of the file at which each row group begins."""
    sizes = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    return list(accumulate(sizes, initial=0))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
