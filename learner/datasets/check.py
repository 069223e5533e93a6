"""Look at every pair before a run does: `python -m learner.datasets.check DIR_OR_PARQUET [more ...]`

Names every bad row with its file, every missing column, and every picture that cannot be decoded, then counts.
Exit status: 0 all rows are good, 1 some are not, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from learner.datasets.images import decode_image
from learner.datasets.pairs import open_pairs
from learner.datasets.rows import DataError, PairRow


def check(path: str | Path) -> tuple[int, list[str]]:
    """(good rows, a sentence for each thing that is wrong) of the pairs at `path`."""
    problems: list[str] = []
    try:
        source = open_pairs(path, problems=problems)
    except DataError as error:
        return 0, [str(error)]
    good = 0
    for block, size in enumerate(source.block_sizes()):
        for offset in range(size):
            try:
                row = source.row(block, offset)
            except DataError as error:
                problems.append(str(error))
                continue
            bad = list(_bad_pictures(row))
            problems += bad
            good += not bad
    return good, problems


def _bad_pictures(row: PairRow) -> list[str]:
    found = []
    for name, data in (("image 0", row.image_0), ("image 1", row.image_1)):
        try:
            decode_image(data, f"{row.key} {name}")
        except DataError as error:
            found.append(str(error))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the paths on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m learner.datasets.check", description="Look at every pair.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folder of pairs, parquet file, or directory of them")
    failed = False
    for path in parser.parse_args(arguments).paths:
        good, problems = check(path)
        for sentence in problems:
            print(sentence)
        print(f"{path}: {good} good pairs, {len(problems)} problems")
        failed = failed or bool(problems) or good == 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
