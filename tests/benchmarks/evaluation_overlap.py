"""Does an evaluation in progress slow the learner? One asynchronous run under Ray that alternates between both.

    python -m tests.benchmarks.evaluation_overlap --dir runs/overlap

Learner and evaluator are pinned to a core each (the workers to the others, or to the evaluator's where there are two),
so that "resources of its own" is true on any machine with two cores. A batch's update counts as `with` where it lies
within an evaluation, as `without` where it touches none; figures are seconds of update per pair, so that batches of
different size compare. Whatever else runs on the machine falls on both alike.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learner.evaluations import SECONDS_TAG
from tests.learner.command import Command, tiny_settings

ROLES = {"ray::RayTrainWorker": "learner", "ray::Evaluator": "evaluator", "ray::RolloutWorkerActor": "worker"}
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """Wall-clock seconds."""

    begin: float
    end: float


def settings(folder: Path, batches: int, every: int, pictures: int) -> list[str]:
    return [
        *tiny_settings(folder), "learner.ranks=1", f"learner.max_batches={batches}", "schedule={type: async}",
        f"evaluation.every_batches={every}", f"evaluation.pictures_per_prompt={pictures}", "run.name=overlap",
        "checkpoint.every_batches=1000000", "checkpoint.best=null", "evaluation.resources={cpus: 1}",
    ]  # fmt: skip


def pin(run: Command) -> dict[str, set[int]]:
    """Give every process of the three roles its core; what is pinned already stays so."""
    cores = sorted(os.sched_getaffinity(0))
    placed = {"learner": {cores[0]}, "evaluator": {cores[1]}, "worker": set(cores[2:]) or {cores[1]}}
    for pid, line in run.processes().items():
        role = next((role for title, role in ROLES.items() if title in line), None)
        for thread in Path(f"/proc/{pid}/task").glob("*") if role else ():
            try:
                os.sched_setaffinity(int(thread.name), placed[role])
            except ProcessLookupError:
                continue
    return placed


def timings(run_dir: Path) -> tuple[list[tuple[Interval, float]], list[Interval]]:
    """Updates with their seconds per pair, and evaluations during training, from TensorBoard's wall times."""
    events = EventAccumulator(str(run_dir / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    trained = {event.step: event.value for event in events.Scalars("pairs/trained")}
    updates, last = [], 0
    for event in events.Scalars("throughput/update_sec"):
        pairs = sum(value for step, value in trained.items() if last < step <= event.step)
        last = event.step
        if pairs:
            updates.append((Interval(event.wall_time - event.value, event.wall_time), event.value / pairs))
    evaluations = [Interval(e.wall_time - e.value, e.wall_time) for e in events.Scalars(SECONDS_TAG) if e.step > 0]
    return updates, evaluations


def divided(updates: list[tuple[Interval, float]], evaluations: list[Interval]) -> tuple[list[float], list[float]]:
    """Seconds per pair of the updates within an evaluation, and of those that touch none."""
    within = [value for at, value in updates if any(e.begin <= at.begin and at.end <= e.end for e in evaluations)]
    apart = [value for at, value in updates if all(at.end < e.begin or e.end < at.begin for e in evaluations)]
    return within, apart


def ratio_interval(within: list[float], apart: list[float]) -> tuple[float, float, float]:
    """Ratio of medians with its 95 % percentile bootstrap interval."""
    generator = np.random.default_rng(0)
    a, b = np.asarray(within), np.asarray(apart)
    resampled = [
        np.median(generator.choice(a, len(a))) / np.median(generator.choice(b, len(b))) for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(np.median(a) / np.median(b)), float(low), float(high)


def main() -> int:
    """Run, measure, print; 1 where the run failed or gave nothing to compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evaluation_overlap")
    parser.add_argument("--dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--batches", type=int, default=80)
    parser.add_argument("--every", type=int, default=8, help="batches between evaluations")
    parser.add_argument("--pictures", type=int, default=24, help="of each of 4 prompts: how long an evaluation lasts")
    options = parser.parse_args()
    options.dir.mkdir(parents=True)
    run = Command(settings(options.dir, options.batches, options.every, options.pictures), options.dir / "run")
    while run.process.poll() is None:
        placed = pin(run)
        time.sleep(1)
    status, output = run.finish()
    if status:
        print(output[-3000:], file=sys.stderr)
        return 1
    updates, evaluations = timings(options.dir / "run")
    within, apart = divided(updates, evaluations)
    lengths = [e.end - e.begin for e in evaluations]
    print(f"cores {placed}; {len(updates)} batches, {len(evaluations)} evaluations of {np.median(lengths):.1f} s")
    if not within or not apart:
        print(f"{len(within)} updates within an evaluation, {len(apart)} apart: nothing to compare", file=sys.stderr)
        return 1
    for name, values in (("with", within), ("without", apart)):
        print(f"{name:>8}: {len(values)} updates, median {1e3 * np.median(values):.2f} ms a pair")
    ratio, low, high = ratio_interval(within, apart)
    print(f"ratio of medians {ratio:.3f} (95 % interval {low:.3f} .. {high:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
