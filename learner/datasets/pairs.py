"""From a path or a hub id to pairs: which form the data have is seen from what is there."""

from __future__ import annotations

from pathlib import Path

from learner.datasets.files import files_below, hub_files
from learner.datasets.folder import INDEX, FolderPairs
from learner.datasets.order import PairSource
from learner.datasets.parquet import ParquetPairs
from learner.datasets.rows import DataError, Selection


def open_pairs(
    path: str | Path,
    selection: Selection | None = None,
    *,
    cached_groups: int = 4,
    problems: list[str] | None = None,
) -> PairSource:
    """The pairs at `path`: a folder with `pairs.jsonl`, a parquet file, or a directory of parquet files.

    `problems` takes a sentence for each bad row instead of raising. Raises DataError where none of the three is there,
    and for bad rows, each named with its file.
    """
    path = Path(path)
    if (path / INDEX).is_file():
        return FolderPairs(path, selection, problems=problems)
    alone = path.is_file() and path.suffix.lower() == ".parquet"
    files = [path] if alone else sorted(file for file in files_below(path) if file.suffix.lower() == ".parquet")
    if files:
        return ParquetPairs([str(file) for file in files], selection, cached_groups=cached_groups, problems=problems)
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    raise DataError(f"{path}: neither a folder with {INDEX}, nor a parquet file, nor a directory of parquet files")


def stream_pairs(
    name: str, split: str, selection: Selection | None = None, *, cached_groups: int = 4, limit_files: int | None = None
) -> PairSource:
    """The pairs of a hub data set in Pick-a-Pic's form, read from the hub as they are needed; nothing is stored.

    Args:
        name: hub id (or local directory) that `datasets` resolves to parquet files, for instance
            yuvalkirstain/pickapic_v1.
        split: for instance train.
        limit_files: only the first this many files.

    Raises DataError where `datasets` finds no such data set or split, or no parquet files, and for bad rows.
    """
    files = hub_files(name, split)[:limit_files]
    return ParquetPairs(files, selection, cached_groups=cached_groups)
