"""JSON Lines: one row a line, images as paths relative to the manifest. In memory: place and number of each line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from learner.datasets.files import fingerprint
from learner.datasets.rows import DataError
from learner.datasets.tables import BadRow, Row


class JsonlTable:
    """Rows of one or more .jsonl files, one block each; empty lines are no rows."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Reads every file once, line by line. Raises DataError for a file that cannot be read."""
        indexed = [(file, *_index(file)) for file in files]
        self._blocks = [(file, offsets, lines) for file, offsets, lines in indexed if len(offsets)]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([file for file, *_ in self._blocks], self.block_sizes())

    def block_sizes(self) -> list[int]:
        return [len(offsets) for _, offsets, _ in self._blocks]

    def read(self, block: int, offset: int, columns: Sequence[str]) -> Row:
        file, offsets, lines = self._blocks[block]
        where = f"{file} line {lines[offset]}"
        try:
            with file.open("rb") as opened:
                opened.seek(int(offsets[offset]))
                line = opened.readline()
        except OSError as error:
            raise BadRow(where, f"cannot be read: {error.strerror}") from error
        return Row(where, _parsed(line, where), file.parent)

    def scan(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        for file, _, _ in self._blocks:
            with file.open("rb") as opened:
                for line in opened:
                    if not line.strip():
                        continue
                    try:
                        yield _parsed(line, "")
                    except BadRow:
                        yield {}


def _index(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Byte offset and line number of every line that is not empty: int64 [rows] each."""
    offsets, numbers, offset = [], [], 0
    try:
        with file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                if line.strip():
                    offsets.append(offset)
                    numbers.append(number)
                offset += len(line)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    return np.array(offsets, dtype=np.int64), np.array(numbers, dtype=np.int64)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRow(where, f"not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise BadRow(where, f"not JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise BadRow(where, f"not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise BadRow(where, f"expected a JSON object, found {type(value).__name__}")
    return value
