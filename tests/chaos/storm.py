"""A storm of kills over one tiny run, and its report: make chaos

    python -m tests.chaos.storm --kills 33 --seed 0 --dir runs/chaos --report docs/chaos.md

Kinds come in a seeded order. Each kill is kill -9 of real processes, noted with what they were doing; the next one
follows once the run has recovered: it has trained beyond the step at which it was hurt, the killed processes have
successors, the queue's books close and the workers' adapters are ones in force. A storm that is cut short goes on where
it was when it is started again. At the end the run is finished in peace, and its books must close.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from learner.committed import MANIFEST, list_committed, read_manifest
from learner.metrics_log import read_metrics
from learner.summary import Summary, read_summary
from tests.chaos.books import assert_each_once, committed_queue
from tests.chaos.observer import Observer, Sight
from tests.chaos.report import Kill, report
from tests.learner.command import Command, tiny_settings

KINDS = {
    "one rollout worker": ("ray::RolloutWorkerActor", 1),
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
RECOVERY_SEC = 900
STARTS = 3
"""How often the command is started in a row: a busy machine may miss the time that Ray gives its own start."""
LAST_BATCHES = 8
ENDLESS = 10**6


def kinds(count: int, seed: int) -> list[str]:
    """Every kind about equally often, in a seeded order."""
    rng, names = random.Random(seed), sorted(KINDS)
    order = [names[n % len(names)] for n in range(count)]
    rng.shuffle(order)
    return order


def settings(folder: Path) -> list[str]:
    """A tiny asynchronous run of two ranks and two workers."""
    if (folder / "settings.json").exists():
        given: list[str] = json.loads((folder / "settings.json").read_text())
        return given
    given = [
        *tiny_settings(folder), "run.name=chaos", "schedule={type: async}", "rollout.workers.initial=2",
        "rollout.workers.resources={cpus: 0.25}", "checkpoint.every_batches=2", "checkpoint.max_failures=1000",
        "evaluation.every_batches=6", "queue.capacity_groups=16",
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
        self._start(self.step())

    def _start(self, step: int) -> int:
        """Start the run and train beyond `step`; returns the lowest step seen meanwhile."""
        for _ in range(STARTS):
            self.run = self._command(ENDLESS)
            self.run.until(lambda: self.run.process.poll() is not None or self.run.pids("ray::PoolActor"), RECOVERY_SEC)
            if "a local Ray cluster cannot be started" not in self.run.output():
                break
        lowest = self.until_trained_beyond(step)
        self.observer = Observer(self.run.ray_address(), "chaos")
        return lowest

    def _command(self, max_batches: int) -> Command:
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
        alive = self.run.until(lambda: self.run.pids(title), RECOVERY_SEC) if title else []
        victims = rng.sample(alive, min(count, len(alive)))
        doing, began = self._doing(kind, victims), time.monotonic()
        if kind == "everything":
            processes = [f"{len(self.run.processes())} processes"]
            self.observer.close()
            self.run.kill_everything()
            step = self.step()
            lowest = self._start(step)
        else:
            processes = [f"{title} {pid}" for pid in victims]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            step = self.step()
            lowest = self.until_trained_beyond(step + 1)  # a dead rank's last report may still be on its way
            self.run.until(lambda: len(set(self.run.pids(title)) - set(alive)) >= len(victims), RECOVERY_SEC)
        recovery_sec = round(time.monotonic() - began, 1)
        seen: Sight = self.run.until(self._sound, RECOVERY_SEC)
        done = Kill(
            kind, processes, doing, step, min(lowest, step), recovery_sec,
            {name: seen.queue[name] for name in ("produced", "trained", "dropped", "queued", "refused")},
        )  # fmt: skip
        with self._log.open("a") as file:
            file.write(json.dumps(asdict(done)) + "\n")
        self.kills.append(done)
        return done

    def _sound(self) -> Sight | None:
        """What is seen, once the books close and the adapters agree."""
        seen = self.observer.look()
        return seen if seen.books_close and seen.adapters_agree else None

    def _doing(self, kind: str, victims: list[int]) -> str:
        """What the processes that are about to die are doing."""
        seen = self.observer.look()
        workers = seen.workers if kind == "everything" else {pid: seen.workers.get(pid, "loading") for pid in victims}
        if kind.endswith(("worker", "workers")):
            return "; ".join(workers.values())
        if kind.endswith(("rank", "ranks")):
            return self._learner_does(seen)
        queue, pool = seen.queue, seen.pool
        if kind == "replay queue":
            held, waiting = queue["waiting_producers"], queue["waiting_ranks"]
            return f"holds {queue['queued']} groups, {held} producers held, {waiting} ranks waiting"
        if kind == "weight mailbox":
            return f"serves version {len(seen.published)} of those in force"
        if kind == "rollout pool":
            return f"{pool['busy']} workers busy, {pool['loading']} loading, {pool['chunks_in_flight']} chunks out"
        if kind == "evaluator":
            return "evaluates" if any("evaluate" in self._title(pid) for pid in victims) else "idle"
        if kind == "telemetry":
            return f"has step {self.step()}"
        return "; ".join([f"learner {self._learner_does(seen)}", *workers.values()])

    def _learner_does(self, seen: Sight) -> str:
        if any(not (path / MANIFEST).exists() for path in (self.run_dir / "checkpoints").glob("batch-*")):
            return "saves a checkpoint"
        if waiting := seen.queue.get("waiting_ranks"):
            return f"waits for a batch ({waiting} ranks)"
        return f"trains batch {seen.queue.get('batch')}"

    def _title(self, pid: int) -> str:
        return self.run.processes().get(pid, "")

    def finish(self) -> Summary:
        """End the run as a user would, and finish it in peace a few batches later. The books close: Summary says so."""
        self.observer.close()
        self.run.process.send_signal(signal.SIGTERM)
        status, output = self.run.finish(RECOVERY_SEC)
        assert status == 143, output
        self.run.assert_no_orphans()
        trained = read_manifest(list_committed(self.run_dir)[-1])["counters"]["batch"]
        self.run = self._command(trained + LAST_BATCHES)
        status, output = self.run.finish(2 * RECOVERY_SEC)
        assert status == 0, output
        self.run.assert_no_orphans()
        summary = read_summary(self.run_dir / "summary.json")
        assert summary.groups.trained == 4 * (trained + LAST_BATCHES), "no batch twice, none missing"
        steps = [line["step"] for line in read_metrics(self.run_dir / "metrics.jsonl") if "loss/total" in line]
        assert steps == list(range(1, summary.steps + 1)), "no step twice, none missing"
        assert_each_once(committed_queue(self.run_dir))
        return summary

    def end(self) -> None:
        self.observer.close()
        self.run.kill_everything()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=33)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=Path("runs/chaos"), help="where the run and the log of kills are")
    parser.add_argument("--report", type=Path, default=Path("docs/chaos.md"))
    options = parser.parse_args()
    if (options.dir / "run" / "summary.json").exists():
        parser.error(f"{options.dir} holds a storm that was finished: remove it, or give another --dir")
    storm = Storm(options.dir.resolve())
    try:
        for number, kind in enumerate(kinds(options.kills, options.seed)):
            if number < len(storm.kills):
                continue  # done before this storm was cut short
            rng = random.Random(f"{options.seed}/{number}")
            time.sleep(rng.uniform(0, 3))  # anywhere in a batch
            print(f"{number + 1}/{options.kills}: {storm.kill(kind, rng)}", flush=True)
        text = report(storm.kills, storm.finish(), options.seed, LAST_BATCHES)
    finally:
        storm.end()
    options.report.write_text(text)
    print(f"The books close; the report is in {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
