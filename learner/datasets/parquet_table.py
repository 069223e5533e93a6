"""Parquet: a row group is a block. In memory: the files' footers, and the row groups of two shuffle windows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from learner.datasets.files import fingerprint
from learner.datasets.rows import DataError
from learner.datasets.tables import BadRow, Row


class ParquetTable:
    """Rows of one or more .parquet files; images are bytes, `{bytes, path}`, or paths relative to the file."""

    def __init__(self, files: Sequence[Path], kept_groups: int) -> None:
        """Reads the footers. `kept_groups`: row groups held in memory, with the columns that are asked for.

        Raises DataError for a file that is no parquet, or has other columns than the first.
        """
        self._files = list(files)
        self._metadata = [_footer(file) for file in self._files]
        self._columns = _names(self._metadata[0])
        for file, metadata in zip(self._files, self._metadata, strict=True):
            if differ := set(_names(metadata)) ^ set(self._columns):
                raise DataError(f"{file}: has other columns than {self._files[0]}: {', '.join(sorted(differ))}")
        self._groups = [
            (shard, number)
            for shard, metadata in enumerate(self._metadata)
            for number in range(metadata.num_row_groups)
            if metadata.row_group(number).num_rows
        ]
        self._kept_groups = kept_groups
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self._files, [metadata.num_rows for metadata in self._metadata])

    def block_sizes(self) -> list[int]:
        return [self._metadata[shard].row_group(number).num_rows for shard, number in self._groups]

    def read(self, block: int, offset: int, columns: Sequence[str]) -> Row:
        shard, number = self._groups[block]
        metadata, file = self._metadata[shard], self._files[shard]
        first = sum(metadata.row_group(before).num_rows for before in range(number))
        where = f"{file} row {first + offset}"
        wanted = tuple(name for name in self._columns if name in columns)
        try:
            table = self._group(shard, number, wanted)
        except (pyarrow.ArrowException, OSError) as error:
            raise BadRow(where, f"row group {number} cannot be read: {_first_line(error)}") from error
        values = {name: table.column(name)[offset].as_py() for name in wanted}
        return Row(where, values or dict.fromkeys(self._columns), file.parent)

    def scan(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        wanted = [name for name in self._columns if name in columns]
        for shard, number in self._groups:
            file, metadata = self._files[shard], self._metadata[shard]
            if not wanted:
                yield from ({} for _ in range(metadata.row_group(number).num_rows))
                continue
            try:
                with pyarrow.parquet.ParquetFile(file, metadata=metadata) as opened:
                    table = opened.read_row_group(number, columns=wanted)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{file}: row group {number} cannot be read: {_first_line(error)}") from error
            yield from table.to_pylist()

    def _group(self, shard: int, number: int, columns: tuple[str, ...]) -> Any:
        key = (shard, number, columns)
        if key not in self._kept:
            while len(self._kept) >= self._kept_groups:
                self._kept.popitem(last=False)
            with pyarrow.parquet.ParquetFile(self._files[shard], metadata=self._metadata[shard]) as opened:
                self._kept[key] = opened.read_row_group(number, columns=list(columns))
        self._kept.move_to_end(key)
        return self._kept[key]


def _footer(file: Path) -> Any:
    try:
        return pyarrow.parquet.read_metadata(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: truncated, or not a parquet file: {_first_line(error)}") from error


def _names(metadata: Any) -> tuple[str, ...]:
    return tuple(metadata.schema.to_arrow_schema().names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
