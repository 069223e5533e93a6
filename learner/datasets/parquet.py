"""Pick-a-Pic's parquet files as pairs: small columns are read on opening, pictures a row group at a time.

Columns: caption, jpg_0, jpg_1, label_0, label_1, num_example_per_prompt, has_label, are_different; all others are tags.
Rows with has_label false are left out; a labelled row with a null or impossible label is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learner.datasets.parquet_table import ParquetTable
from learner.datasets.rows import (
    LABELS,
    DataError,
    PairRow,
    Selection,
    check_labels,
    require_pair_columns,
    row_from_columns,
)


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
        self._table = ParquetTable(files, cached_groups, problems=problems)
        self._taken: list[tuple[int, tuple[int, ...]]] = []
        """Row groups with rows that are taken, and which these are."""
        for place in range(len(self._table.files)):
            try:
                self._index(place)
            except DataError as error:
                self._report(error)

    def block_sizes(self) -> list[int]:
        """Rows taken of each row group that has any."""
        return [len(taken) for _, taken in self._taken]

    def row(self, block: int, offset: int) -> PairRow:
        """Row `offset` of the taken ones of row group `block`. Raises DataError naming file, row and column."""
        group, taken = self._taken[block]
        row = self._table.read(group, taken[offset], None)
        return row_from_columns(row.values, row.where)

    def _index(self, place: int) -> None:
        names, file = self._table.columns(place), str(self._table.files[place])
        require_pair_columns(names, file)
        self._selection.require_columns(names, file)
        wanted = [*LABELS, *self._selection.where]
        blocks = self._table.blocks_of(place)
        for block, rows in zip(blocks, self._table.scan_file(place, wanted), strict=True):
            taken = tuple(n for n, row in enumerate(rows) if self._takes(row, self._table.where(block, n)))
            if taken:
                self._taken.append((block, taken))

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
