"""Runs the cells that have no result yet, and writes docs/ablations.md from all results: make ablations

    python -m tests.benchmarks.ablations --quick       # one seed of the essential cells: half an hour at most
    python -m tests.benchmarks.ablations               # all rows, three seeds, all rates: up to two and a half hours
    python -m tests.benchmarks.ablations --only spo dpo --seeds 1 2
    python -m tests.benchmarks.ablations --report      # the page and its pictures alone

A finished cell is one file in docs/ablations. Whatever stops this, the next call goes on with what is missing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.benchmarks.ablations.cells import START, Cell
from tests.benchmarks.ablations.results import load_results
from tests.benchmarks.ablations.tables import RATE_SEED, SEEDS, all_cells, quick_cells

RESULTS = Path("docs/ablations")
PAGE = Path("docs/ablations.md")
WORK = Path("runs/ablations")
"""Data sets, latents and the plain preference model; nothing there is kept under version control."""


def missing(cells: Iterable[Cell], results: Path) -> list[Cell]:
    """Those without a result of their present definition, in order."""
    done = {result["key"] for result in load_results(results)}
    return [cell for cell in cells if cell.key() not in done]


def prepare(cells: Sequence[Cell]) -> None:
    """Make what several cells share, before they run side by side."""
    from tests.benchmarks.ablations.run import data_set
    from tests.benchmarks.ablations.scorers import train_plain

    for kind, rows in {(cell.data, cell.rows) for cell in cells if cell.data}:
        data_set(kind, rows, WORK)
    if any(cell.name == "spo-plain" for cell in cells):
        train_plain()


def run_all(cells: Sequence[Cell], results: Path, work: Path, jobs: int) -> list[str]:
    """Run `cells`, each in a process of its own, `jobs` at a time. Returns a line for each that failed."""
    from tests.benchmarks.ablations.run import run_cell

    os.environ["OMP_NUM_THREADS"] = "1"  # of the cells: each has a core to itself
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_cell.__module__])
    failed, began = [], time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        running = {pool.submit(run_cell, cell, results, work): cell for cell in cells}
        for number, future in enumerate(as_completed(running), start=1):
            cell, error = running[future], future.exception()
            if error is not None:
                failed.append(f"{cell.slug}: {type(error).__name__}: {error}")
            minutes = (time.monotonic() - began) / 60
            state = "finished" if error is None else "FAILED"
            print(f"{number}/{len(cells)} {cell.slug} {state} after {minutes:.1f} min", flush=True)
    return failed


def selected(options: argparse.Namespace) -> list[Cell]:
    """The cells that the command line asks for. Raises SystemExit for a name that no cell has."""
    every = all_cells()
    chosen = quick_cells() if options.quick else every
    if options.only:
        if unknown := sorted(set(options.only) - {cell.name for cell in every}):
            raise SystemExit(f"no such cell: {', '.join(unknown)}. Cells: {', '.join(sorted({c.name for c in every}))}")
        chosen = [cell for name in options.only for cell in every if cell.name == name]
    return [START, *(cell for cell in chosen if cell.seed in (*options.seeds, RATE_SEED))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ablations", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed of the essential cells")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="only cells of these names, in this order")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, each on one core")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page")
    options = parser.parse_args(arguments)
    chosen = selected(options)
    todo = [] if options.report else missing(chosen, RESULTS)
    print(f"{len(chosen)} cells, {len(todo)} to run", flush=True)
    failed: list[str] = []
    if todo:
        prepare(todo)
        failed = run_all(todo, RESULTS, WORK, options.jobs)
    from tests.benchmarks.ablations.plots import draw_all
    from tests.benchmarks.ablations.report import render_page

    found = load_results(RESULTS)
    draw_all(found, RESULTS)
    PAGE.write_text(render_page(found), encoding="utf-8")
    print(f"{PAGE} is written from {len(found)} results")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
