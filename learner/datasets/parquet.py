"""Pick-a-Pic's parquet files, local or remote: small columns are read on opening, pictures a row group at a time.

A remote file (hf://, s3://, ...) is read by ranges through fsspec, nothing is stored: any row group can be read at any
time, so a streamed run has the order of a local one and resumes at any position without reading what came before.

Columns: caption, jpg_0, jpg_1, label_0, label_1, num_example_per_prompt, has_label, are_different; all others are tags.
Rows with has_label false are left out; a labelled row with a null or impossible label is an error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet

from learner.datasets.rows import (
    LABELS,
    DataError,
    PairRow,
    Selection,
    check_labels,
    require_pair_columns,
    row_from_columns,
)


@dataclass(frozen=True)
class _Group:
    """The rows of one row group that are taken."""

    file: str
    number: int
    first_row: int
    """Row of the file at which the group begins."""
    kept: tuple[int, ...]
    """Rows of the group."""


class ParquetPairs:
    """Pairs in parquet files, in the order given."""

    def __init__(
        self,
        files: Sequence[str],
        selection: Selection | None = None,
        *,
        cached_groups: int = 1,
        problems: list[str] | None = None,
    ) -> None:
        """Read the small columns of every file.

        files: local paths, or URLs that fsspec opens.
        cached_groups: row groups whose pictures are kept in memory.
        problems: takes one sentence for each bad row, which is then left out, instead of raising.

        Raises DataError for missing columns, files that are not parquet, and bad rows.
        """
        self._selection = selection or Selection()
        self._problems = problems
        self._cached_groups = cached_groups
        self._cache: OrderedDict[int, list[Mapping[str, Any]]] = OrderedDict()
        self._groups: list[_Group] = []
        for file in files:
            try:
                self._index(file)
            except DataError as error:
                self._report(error)

    def block_sizes(self) -> list[int]:
        """Rows taken of each row group that has any."""
        return [len(group.kept) for group in self._groups]

    def row(self, block: int, offset: int) -> PairRow:
        """Row `offset` of the taken ones of row group `block`. Raises DataError naming file, row and column."""
        group = self._groups[block]
        return row_from_columns(self._read(block)[offset], _key(group.file, group.first_row + group.kept[offset]))

    def _index(self, file: str) -> None:
        try:
            with _opened(file) as opened:
                names = opened.schema_arrow.names
                require_pair_columns(names, file)
                self._selection.require_columns(names, file)
                wanted = list(dict.fromkeys([*LABELS, *self._selection.where]))
                first_row = 0
                for number in range(opened.num_row_groups):
                    columns = opened.read_row_group(number, columns=wanted).to_pylist()
                    kept = tuple(n for n, row in enumerate(columns) if self._takes(row, _key(file, first_row + n)))
                    if kept:
                        self._groups.append(_Group(file, number, first_row, kept))
                    first_row += len(columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file}: cannot be read (truncated, or not a parquet file): {error}") from error

    def _takes(self, columns: Mapping[str, Any], key: str) -> bool:
        try:
            check_labels(columns, key)
        except DataError as error:
            self._report(error)
            return False
        return self._selection.keeps(columns)

    def _report(self, error: DataError) -> None:
        if self._problems is None:
            raise error
        self._problems.append(str(error))

    def _read(self, block: int) -> list[Mapping[str, Any]]:
        """The taken rows of a row group, pictures included."""
        if block not in self._cache:
            while len(self._cache) >= self._cached_groups:
                self._cache.popitem(last=False)
            group = self._groups[block]
            try:
                with _opened(group.file) as opened:
                    table = opened.read_row_group(group.number)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{group.file}: row group {group.number} cannot be read: {error}") from error
            self._cache[block] = table.take(list(group.kept)).to_pylist()
        self._cache.move_to_end(block)
        return self._cache[block]


def _key(file: str, row: int) -> str:
    return f"{file} row {row}"


@contextmanager
def _opened(file: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    with fsspec.open(file, "rb") as raw, pyarrow.parquet.ParquetFile(raw) as opened:
        yield opened
