"""Files of a data set: which ones a path means, and by what a data set is known again."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path

from learner.datasets.rows import DataError


def find_files(path: Path, suffix: str) -> list[Path]:
    """The files that `path` means: one file, those of a folder with this suffix, or those of a pattern, by name.

    Raises DataError where there is none.
    """
    if path.is_dir():
        found = sorted(file for file in path.rglob(f"*{suffix}") if file.is_file())
        missing = f"no {suffix} file in this folder"
    elif glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        missing = "no file has a name of this pattern"
    else:
        found = [path] if path.is_file() else []
        missing = "no such file or folder"
    if not found:
        raise DataError(f"{path}: {missing}")
    return found


def fingerprint(files: Sequence[Path], sizes: Sequence[int]) -> str:
    """Names, lengths and row counts of the files; not where they lie, so that a data set may be moved."""
    digest = hashlib.sha256()
    for file, rows in zip(files, sizes, strict=True):
        digest.update(f"{file.name}\0{file.stat().st_size}\0{rows}\n".encode())
    return digest.hexdigest()
