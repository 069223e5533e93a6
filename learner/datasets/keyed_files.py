"""Files that belong together by name, in a folder or in tar archives (the WebDataset convention).

    0001.win.png  0001.lose.png  0001.txt  0001.json         a row: everything that has the key 0001

The key is the path up to the file name's first dot; what follows is the column. `png`, `jpg`, `jpeg`, `webp` and `bmp`
are images: `0001.win.png` is column `win`, `0001.png` column `image`. `txt` is text: `0001.txt` is column `caption`.
The keys of a JSON object in `0001.json` are columns, where no file gives the column. Other files are ignored.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from learner.datasets.files import files_below, fingerprint, refuse_unreadable_name
from learner.datasets.rows import DataError
from learner.datasets.tables import BadRow, Row
from rollout.prompts import stable_hash

IMAGES = ("png", "jpg", "jpeg", "webp", "bmp")
BLOCK_ROWS = 64
"""Rows of an archive that count as near each other."""


class FolderTable:
    """Rows of a folder and those below it, by key. In memory: the file names."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where no file of a known kind is there, or one has a name that is not UTF-8."""
        self._folder = folder
        names = (str(path.relative_to(folder)) for path in files_below(folder))
        known = sorted((*split_key(name), name) for name in names if is_known(name))
        for *_, name in known:
            refuse_unreadable_name(name, folder)
        self._rows = [
            (key, [(column, name) for _, column, name in members])
            for key, members in itertools.groupby(known, key=lambda member: member[0])
        ]
        if not self._rows:
            raise DataError(f"{folder}: no file here ends in one of {', '.join([*IMAGES, 'txt', 'json'])}")

    @cached_property
    def fingerprint(self) -> str:
        files = [self._folder / name for _, members in self._rows for _, name in members]
        return fingerprint(files, [1] * len(files))

    def block_sizes(self) -> list[int]:
        return [len(self._rows)]

    def read(self, block: int, offset: int, columns: Sequence[str]) -> Row:
        key, members = self._rows[offset]
        where = f"{self._folder / key}.*"
        paths = [(rest, self._folder / name) for rest, name in members]
        values = merge(where, ((rest, str(path) if is_image(rest) else _bytes(where, path)) for rest, path in paths))
        return Row(where, values, Path())

    def scan(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        for offset in range(len(self._rows)):
            try:
                yield self.read(0, offset, columns).values
            except BadRow:
                yield {}


class TarTable:
    """Rows of one or more uncompressed .tar files. In memory: where each row begins."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Reads the headers of every file. Raises DataError for a file that is no plain tar, has a row in pieces, or
        links instead of files.
        """
        self._starts = [(file, _index(file)) for file in files]
        self._blocks = [
            (file, starts[first : first + BLOCK_ROWS])
            for file, starts in self._starts
            for first in range(0, len(starts), BLOCK_ROWS)
        ]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([file for file, _ in self._starts], [len(starts) for _, starts in self._starts])

    def block_sizes(self) -> list[int]:
        return [len(starts) for _, starts in self._blocks]

    def read(self, block: int, offset: int, columns: Sequence[str]) -> Row:
        file, starts = self._blocks[block]
        try:
            with file.open("rb") as opened:
                opened.seek(int(starts[offset]))
                with tarfile.open(fileobj=opened, mode="r:") as archive:
                    return self._row(file, archive, images=True)
        except (tarfile.TarError, OSError) as error:
            raise BadRow(f"{file} row {offset} of block {block}", f"cannot be read: {error}") from error

    def scan(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        for file, starts in self._starts:
            with file.open("rb") as opened:
                for start in starts:
                    opened.seek(int(start))
                    try:
                        with tarfile.open(fileobj=opened, mode="r:") as archive:
                            yield self._row(file, archive, images=False).values
                    except BadRow:
                        yield {}

    def _row(self, file: Path, archive: tarfile.TarFile, *, images: bool) -> Row:
        """The row that begins where `archive` does; without `images`, only its other columns."""
        first: str | None = None
        members: list[tuple[str, bytes]] = []
        for member in archive:
            if not member.isfile() or not is_known(member.name):
                continue
            key, column = split_key(member.name)
            first = first or key
            if key != first:
                break
            if images or not is_image(column):
                opened = archive.extractfile(member)
                assert opened is not None, "a regular file"
                members.append((column, opened.read()))
        where = f"{file}: {first}.*"
        return Row(where, merge(where, members), file.parent)


def split_key(name: str) -> tuple[str, str]:
    """Key and the rest of a member's path: `a/b.win.png` is `a/b` and `win.png`."""
    folder, slash, base = name.rpartition("/")
    stem, _, rest = base.partition(".")
    return f"{folder}{slash}{stem}", rest


def is_image(rest: str) -> bool:
    return rest.rpartition(".")[2].lower() in IMAGES


def is_known(name: str) -> bool:
    key, rest = split_key(name)
    return bool(key.rpartition("/")[2]) and (is_image(rest) or rest.rpartition(".")[2].lower() in ("txt", "json"))


def merge(where: str, members: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Columns of one row; those of a .json stand back behind files.

    Raises BadRow for text that is not UTF-8, for a .json that is no object, and for two files of one column.
    """
    listed: dict[str, Any] = {}
    files: dict[str, tuple[str, Any]] = {}
    for rest, value in members:
        column, _, kind = rest.rpartition(".")
        try:
            if kind.lower() == "json":
                listed |= _object(json.loads(value.decode("utf-8-sig")))
                continue
            column = column or ("image" if is_image(rest) else "caption")
            content = value if is_image(rest) else value.decode("utf-8-sig")
        except (ValueError, RecursionError) as error:
            raise BadRow(where, f".{rest} cannot be read: {error}") from error
        if column in files:
            raise BadRow(
                where,
                f".{files[column][0]} and .{rest} both are column {column!r}, as what follows a name's first dot says; "
                f"rename or remove one of them",
            )
        files[column] = rest, content
    return listed | {column: content for column, (_, content) in files.items()}


def _object(parsed: Any) -> dict[str, Any]:
    if not isinstance(parsed, dict):
        raise ValueError(f"it holds {type(parsed).__name__}; expected a JSON object")
    return parsed


def _bytes(where: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRow(where, f"{path}: cannot be read: {error.strerror}") from error


def _index(file: Path) -> np.ndarray:
    """Where each row's first member begins: int64 [rows]."""
    starts, keys, current = [], set(), None
    try:
        with tarfile.open(file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # or it would keep every header
                if not is_known(member.name):
                    continue
                refuse_unreadable_name(member.name, file)
                if member.islnk() or member.issym():
                    raise DataError(
                        f"{file}: {member.name} is a link to {member.linkname}; pack the files themselves "
                        f"(tar --dereference --hard-dereference)"
                    )
                if not member.isfile():
                    continue
                key, _ = split_key(member.name)
                if key == current:
                    continue
                if (hashed := stable_hash(key)) in keys:
                    raise DataError(f"{file}: the files of {key} do not follow each other; sort the archive by name")
                keys.add(hashed)
                starts.append(member.offset)
                current = key
            _refuse_damaged_end(file, archive.offset)
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{file}: not a plain tar archive ({error}); a compressed one must be unpacked first"
        ) from error
    return np.array(starts, dtype=np.int64)


def _refuse_damaged_end(file: Path, offset: int) -> None:
    """`tarfile` takes a damaged header for the archive's end; the real end is a block of zeros, or the file's."""
    with file.open("rb") as opened:
        opened.seek(offset)
        if opened.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise DataError(f"{file}: damaged: no file header at byte {offset}")
