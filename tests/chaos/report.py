"""The page that `tests.chaos.storm` writes: each kill, what became of it, and the books."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learner.summary import Summary


@dataclass(frozen=True)
class Kill:
    """One kill and what became of it."""

    kind: str
    """Role, and how many of it at once."""
    processes: list[str]
    """Title and id of each killed process."""
    doing: str
    """What they were doing, as workers, queue, pool and checkpoint directory told it at the moment before."""
    step: int
    lowest_step: int
    """The lowest optimiser step seen afterwards: below `step` when the learner went back to a checkpoint."""
    recovery_sec: float
    """Until an optimiser step beyond `step + 1` was reported, and the killed processes had successors."""
    books: Mapping[str, Any]
    """The queue's, after that; they closed."""


def report(kills: Sequence[Kill], summary: Summary, seed: int, last_batches: int) -> str:
    """The Markdown page."""
    groups = summary.groups
    return f"""# A storm of {len(kills)} kills

Written by `make chaos` (`python -m tests.chaos.storm --kills {len(kills)} --seed {seed}`): a tiny model with every
real part, two learner ranks, two rollout workers, `schedule: async`, a checkpoint every two batches. Each line is
kill -9 of the processes named, at once; after `everything` the command was started again with `--resume auto`.
"Recovered" counts the seconds until more than one step beyond the one it was hurt at was reported and the killed
processes had successors. Before the next kill the queue's books had to close (groups produced = trained + dropped +
queued, the last column), and every worker's adapter to be, by the checksum of its network, one that the learner has
published and not taken back.

{_by_kind(kills)}

Afterwards the run was stopped by SIGTERM, resumed, and finished {last_batches} batches later. The books:
{groups.produced} groups produced = {groups.trained} trained + {_dropped(groups.dropped)} + {groups.queued} still
queued; {summary.steps} optimiser steps, each reported once; no process left over.

| # | killed | processes | doing | at step | then | recovered (s) | books |
|---|---|---|---|---|---|---|---|
{chr(10).join(_row(number, kill) for number, kill in enumerate(kills, start=1))}
"""


def _by_kind(kills: Sequence[Kill]) -> str:
    seconds: dict[str, list[float]] = defaultdict(list)
    for kill in kills:
        seconds[kill.kind].append(kill.recovery_sec)
    rows = (
        f"| {kind} | {len(found)} | {statistics.median(found):.1f} | {max(found):.1f} |"
        for kind, found in sorted(seconds.items())
    )
    return "\n".join(["| killed | times | median recovery (s) | longest (s) |", "|---|---|---|---|", *rows])


def _row(number: int, kill: Kill) -> str:
    happened = "went on" if kill.lowest_step >= kill.step else f"went back to step {kill.lowest_step}"
    books = kill.books
    closed = f"{books['produced']} = {books['trained']} + {_dropped(books['dropped'])} + {books['queued']}"
    processes = ", ".join(f"`{name}`" for name in kill.processes)
    return (
        f"| {number} | {kill.kind} | {processes} | {kill.doing} | {kill.step} | {happened} "
        f"| {kill.recovery_sec:g} | {closed} |"
    )


def _dropped(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} dropped ({reason})" for reason, count in dropped.items()) or "0 dropped"
