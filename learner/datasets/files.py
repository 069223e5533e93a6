"""Files of a data set: which ones a path means, and by what a data set is known again."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec

from learner.datasets.rows import DataError


def find_files(path: Path, suffix: str) -> list[Path]:
    """The files that `path` means: one file, those of a folder with this suffix, or those of a pattern, by name.

    Raises DataError where there is none.
    """
    if path.is_dir():
        found = sorted(file for file in files_below(path) if file.suffix.lower() == suffix)
        missing = f"no {suffix} file in this folder"
    elif path.is_file():  # also one whose name has brackets
        return [path]
    elif glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        missing = "no file has a name of this pattern"
    else:
        found, missing = [], "no such file or folder"
    if not found:
        raise DataError(f"{path}: {missing}")
    return found


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and those below it, in no order. Links to folders are followed, each folder once."""
    seen: set[str] = set()
    for place, below, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (path for name in names if (path := Path(place, name)).is_file())


def is_remote(file: str | Path) -> bool:
    """A URL that fsspec opens; everything else is a local path, whatever is in its name."""
    return "://" in str(file)


def refuse_unreadable_name(name: str, source: Path) -> None:
    """Raise DataError for the name of a file that is not UTF-8: neither messages nor records could carry it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{source}: the name {name!r} is not UTF-8; rename this file") from error


def hub_files(name: str, split: str) -> list[str]:
    """URLs of the parquet files of a hub data set's split.

    name: hub id (or local directory) that `datasets` resolves to parquet files, for instance yuvalkirstain/pickapic_v1.

    Raises DataError where `datasets` finds no such data set or split, or no parquet files.
    """
    import datasets  # a second and 100 MB, which local files do not need

    try:
        builder = datasets.load_dataset_builder(name)
    except (OSError, ValueError) as error:  # no such data set, no network, several configurations
        raise DataError(f"{name}: `datasets` cannot open it: {str(error).strip().splitlines()[0]}") from error
    splits = dict(builder.config.data_files or {})
    if split not in splits:
        raise DataError(f"{name}: no split {split!r}; it has {', '.join(map(str, splits)) or 'no data files'}")
    files = [str(file) for file in splits[split]]
    if foreign := [file for file in files if not file.endswith(".parquet")]:
        raise DataError(f"{name}: {foreign[0]} is no parquet file; only parquet can be read a row group at a time")
    return files


def fingerprint(files: Sequence[str | Path], sizes: Sequence[int]) -> str:
    """Names, lengths and row counts of the files; not where they lie, so that a data set may be moved."""
    digest = hashlib.sha256()
    for file, rows in zip(files, sizes, strict=True):
        digest.update(f"{Path(file).name}\0{_length(file)}\0{rows}\n".encode())
    return digest.hexdigest()


def _length(file: str | Path) -> int:
    """Bytes."""
    if not is_remote(file):
        return os.stat(file).st_size
    system, path = fsspec.core.url_to_fs(str(file))
    return int(system.size(path))
