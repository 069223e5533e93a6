"""What every data set on disk gives: rows in blocks that are cheap to read together, each by its place.

A table never holds its images: an index of places (or of file names) is all that stays in memory, beside the blocks
that are open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from learner.datasets.rows import DataError


class BadRow(DataError):
    """One row that cannot be used; others may be."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadRow], tuple[str, str]]:
        return type(self), (self.where, self.reason)  # it comes from the process that looks at a run's inputs


@dataclass(frozen=True)
class Row:
    """One row's columns. Images are encoded bytes, or the path of a file relative to `folder`."""

    where: str
    """File and place, for messages."""
    values: Mapping[str, Any]
    folder: Path
    """What paths in the row are relative to."""

    def text(self, column: str) -> str:
        """A text that is not empty. Raises BadRow."""
        value = self._value(column)
        if not isinstance(value, str):
            raise BadRow(self.where, f"column {column!r} must be text, found {_kind(value)}")
        if not (text := value.strip()):
            raise BadRow(self.where, f"column {column!r} is empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow(self.where, f"column {column!r} is no text: half a character at {error.start}") from error
        return text

    def number(self, column: str) -> float:
        """Raises BadRow."""
        value = self._value(column)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRow(self.where, f"column {column!r} must be a number, found {_kind(value)}")
        return float(value)

    def image(self, column: str) -> bytes:
        """The encoded image: bytes as they are, `{bytes, path}` as `datasets` writes it, or a file. Raises BadRow."""
        value = self._value(column)
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise BadRow(self.where, f"column {column!r} must be an image (bytes or a path), found {_kind(value)}")
        path = self.folder / value
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadRow(self.where, f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from error
        except ValueError as error:  # a character that no path can have
            raise BadRow(self.where, f"column {column!r} = {value!r} is no path: {error}") from error

    def _value(self, column: str) -> Any:
        if column not in self.values:
            there = ", ".join(sorted(self.values)) or "none"
            raise BadRow(self.where, f"no column {column!r}; there are: {there}")
        return self.values[column]


class Table(Protocol):
    """A data set's rows."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data set does."""

    def block_sizes(self) -> list[int]:
        """Rows of every block, none of them empty."""

    def read(self, block: int, offset: int, columns: Sequence[str]) -> Row:
        """One row with at least those of `columns` that it has. Raises BadRow when it cannot be read."""

    def scan(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """These columns of every row, in order, without images; a row that cannot be read gives an empty mapping."""


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
