"""A storm of kills over one tiny run, and its report: make chaos

    python -m tests.chaos.storm --kills 33 --seed 0 --dir runs/chaos --report docs/chaos.md

Kinds come in a seeded order. Each kill is kill -9 of real processes; the next one follows once the run has trained
beyond the step at which it was hurt. A storm that is cut short goes on where it was when it is started again. At the
end the run is finished in peace, and its books must close.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from learner.checkpoint import list_committed, read_manifest
from learner.metrics_log import read_metrics
from learner.summary import Summary, read_summary
from tests.learner.command import Command, tiny_settings

KINDS = {
    "one rollout worker": ("ray::RolloutWorkerActor", 1),
    "two rollout workers": ("ray::RolloutWorkerActor", 2),
    "all rollout workers": ("ray::RolloutWorkerActor", 99),
    "one learner rank": ("ray::RayTrainWorker", 1),
    "all learner ranks": ("ray::RayTrainWorker", 99),
    "replay queue": ("ray::ReplayActor", 1),
    "weight mailbox": ("ray::MailboxActor", 1),
    "rollout pool": ("ray::PoolActor", 1),
    "telemetry": ("ray::_TelemetryActor", 1),
    "evaluator": ("ray::Evaluator", 1),
    "everything": ("", 0),
}
"""Kind -> what Ray calls the processes, and how many are killed at once. `everything` is followed by --resume auto."""
RECOVERY_SEC = 300
LAST_BATCHES = 8


@dataclass(frozen=True)
class Kill:
    """One kill and what became of it."""

    kind: str
    processes: int
    step: int
    lowest_step: int
    """The lowest optimiser step seen afterwards: below `step` when the learner went back to a checkpoint."""
    recovery_sec: float
    """Until an optimiser step beyond `step` was reported, and the killed processes had successors."""


def kinds(count: int, seed: int) -> list[str]:
    """Every kind about equally often, in a seeded order."""
    rng, names = random.Random(seed), sorted(KINDS)
    order = [names[n % len(names)] for n in range(count)]
    rng.shuffle(order)
    return order


def settings(folder: Path) -> list[str]:
    """A tiny asynchronous run of two ranks and three workers."""
    if (folder / "settings.json").exists():
        given: list[str] = json.loads((folder / "settings.json").read_text())
        return given
    given = [
        *tiny_settings(folder), "run.name=chaos", "schedule={type: async}", "rollout.workers.initial=3",
        "rollout.workers.resources={cpus: 0.25}", "checkpoint.every_batches=2", "checkpoint.max_failures=1000",
        "evaluation.every_batches=20", "queue.capacity_groups=16",
    ]  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(given))
    return given


class Storm:
    """One run directory, the command that works in it, and the kills so far."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._settings = settings(folder)
        self._log = folder / "kills.jsonl"
        self.run_dir = folder / "run"
        self.kills = [Kill(**json.loads(line)) for line in _lines(self._log)]
        self.run = self._start(10**6)

    def _start(self, max_batches: int) -> Command:
        return Command([*self._settings, f"learner.max_batches={max_batches}"], self.run_dir, "--resume", "auto")

    def step(self) -> int:
        log = self.run_dir / "metrics.jsonl"
        trained = [line["step"] for line in read_metrics(log) if "loss/total" in line] if log.exists() else []
        return max(trained, default=0)

    def until_trained_beyond(self, step: int) -> int:
        """Wait for it; returns the lowest step seen meanwhile."""
        seen = [self.step()]

        def beyond() -> bool:
            seen.append(self.step())
            return seen[-1] > step

        self.run.until(beyond, RECOVERY_SEC)
        return min(seen)

    def kill(self, kind: str, rng: random.Random) -> Kill:
        """Kill, wait until the run has recovered, and note it."""
        title, count = KINDS[kind]
        step = self.step()
        began = time.monotonic()
        if kind == "everything":
            processes = len(self.run.processes())
            self.run.kill_everything()
            self.run = self._start(10**6)
            lowest = self.until_trained_beyond(step)
        else:
            pids = self.run.until(lambda: self.run.pids(title), RECOVERY_SEC)
            victims = rng.sample(pids, min(count, len(pids)))
            processes = len(victims)
            began = time.monotonic()
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            lowest = self.until_trained_beyond(step)
            self.run.until(lambda: set(self.run.pids(title)) - set(pids), RECOVERY_SEC)
        done = Kill(kind, processes, step, min(lowest, step), round(time.monotonic() - began, 1))
        with self._log.open("a") as file:
            file.write(json.dumps(asdict(done)) + "\n")
        self.kills.append(done)
        return done

    def finish(self) -> Summary:
        """End the run as a user would, and finish it in peace a few batches later. The books close: Summary says so."""
        self.run.process.send_signal(signal.SIGTERM)
        status, output = self.run.finish(RECOVERY_SEC)
        assert status == 143, output
        self.run.assert_no_orphans()
        trained = read_manifest(list_committed(self.run_dir)[-1])["counters"]["batch"]
        self.run = self._start(trained + LAST_BATCHES)
        status, output = self.run.finish(2 * RECOVERY_SEC)
        assert status == 0, output
        self.run.assert_no_orphans()
        summary = read_summary(self.run_dir / "summary.json")
        assert summary.groups.trained == 4 * (trained + LAST_BATCHES), "no batch twice, none missing"
        steps = [line["step"] for line in read_metrics(self.run_dir / "metrics.jsonl") if "loss/total" in line]
        assert steps == list(range(1, summary.steps + 1)), "no step twice, none missing"
        return summary


def report(kills: Sequence[Kill], summary: Summary, seed: int) -> str:
    """The Markdown page."""
    rows = []
    for number, kill in enumerate(kills, start=1):
        happened = "went on" if kill.lowest_step >= kill.step else f"went back to step {kill.lowest_step}"
        rows.append(f"| {number} | {kill.kind} | {kill.processes} | {kill.step} | {happened} | {kill.recovery_sec:g} |")
    groups = summary.groups
    dropped = ", ".join(f"{count} dropped ({reason})" for reason, count in groups.dropped.items()) or "0 dropped"
    return f"""# A storm of {len(kills)} kills

Written by `make chaos` (`python -m tests.chaos.storm --kills {len(kills)} --seed {seed}`): a tiny model with every
real part, two learner ranks, three rollout workers, `schedule: async`, a checkpoint every two batches. Each line is
kill -9 of that many processes at once; the seconds are until a step beyond the one it was hurt at was reported and
killed processes had successors. After `everything` the command was started again with `--resume auto`.

| # | killed | processes | at step | then | recovered after (s) |
|---|---|---|---|---|---|
{chr(10).join(rows)}

Afterwards the run was stopped by SIGTERM, resumed, and finished {LAST_BATCHES} batches later. The books:
{groups.produced} groups produced = {groups.trained} trained + {dropped} + {groups.queued} still queued;
{summary.steps} optimiser steps, each reported once; no process left over.
"""


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=33)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=Path("runs/chaos"), help="where the run and the log of kills are")
    parser.add_argument("--report", type=Path, default=Path("docs/chaos.md"))
    options = parser.parse_args()
    storm = Storm(options.dir.resolve())
    try:
        storm.until_trained_beyond(storm.step())
        for number, kind in enumerate(kinds(options.kills, options.seed)):
            if number < len(storm.kills):
                continue  # done before this storm was cut short
            rng = random.Random(f"{options.seed}/{number}")
            time.sleep(rng.uniform(0, 3))  # anywhere in a batch
            print(f"{number + 1}/{options.kills}: {storm.kill(kind, rng)}", flush=True)
        text = report(storm.kills, storm.finish(), options.seed)
    finally:
        storm.run.kill_everything()
    options.report.write_text(text)
    print(f"The books close; the report is in {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
