"""What the processes of a run are doing, asked through Ray by a process that no kill is meant for.

    python -m tests.chaos.observer HOST:PORT RUN      one JSON object on stdout for every line on stdin

`Observer` is the other end. Ray is asked at once, so what is seen is a moment old when it is used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from rollout.actors import NAMESPACE, find_actor
from rollout.reach import reach
from rollout.versions import in_force

ROOT = Path(__file__).parents[2]
ANSWER_SEC = 10.0


@dataclass(frozen=True)
class Sight:
    """One look at a run; a part that did not answer is empty."""

    queue: Mapping[str, Any]
    """`ReplayQueue.stats`."""
    pool: Mapping[str, Any]
    """`RolloutPool.stats`."""
    workers: Mapping[int, str]
    """Process of each rollout worker -> its name and what it does."""
    checksums: Mapping[str, str]
    """Worker -> checksum of the adapter in its network."""
    published: tuple[str, ...]
    """Checksums of the adapters in force, newest last."""

    @property
    def books_close(self) -> bool:
        queue = self.queue
        return (
            bool(queue)
            and not queue["awaiting_state"]
            and queue["produced"] == queue["trained"] + sum(queue["dropped"].values()) + queue["queued"]
        )

    @property
    def adapters_agree(self) -> bool:
        """Every live worker has a version that the learner has published and not taken back."""
        return bool(self.checksums) and set(self.checksums.values()) <= set(self.published)


class Observer:
    """The observing process; it lives as long as the run's Ray does."""

    def __init__(self, address: str, run_name: str) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (open as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.observer", address, run_name],
            cwd=ROOT, env={**os.environ, "RAY_AUTH_MODE": "token"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def look(self) -> Sight:
        """Raises ConnectionError when the run's Ray is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        answer = ""
        try:
            self._process.stdin.write("look\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            seen = json.loads(answer)
        except (OSError, ValueError) as error:
            self.close()
            self._errors.seek(0)
            raise ConnectionError(f"the observer has lost the run: {answer}{self._errors.read()[-4000:]}") from error
        workers = {int(pid): text for pid, text in seen.pop("workers").items()}
        return Sight(**{**seen, "workers": workers, "published": tuple(seen["published"])})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def look(run_name: str) -> dict[str, Any]:
    """The fields of `Sight`, inside a process that is connected."""
    queue, pool, mailbox = (find_actor(role, run_name) for role in ("queue", "pool", "mailbox"))
    handles = _answer(pool.__ray_call__.remote(workers_of), {})
    described = {name: actor.describe.remote() for name, actor in handles.items()}
    checksums = {name: actor.adapter_sha256.remote() for name, actor in handles.items()}
    asked = queue.stats.remote(), pool.stats.remote(), mailbox.history.remote()
    workers = {}
    for name, call in described.items():
        if text := _answer(call, ""):
            place, _, action = text.partition(": ")  # "pid 12 on 10.0.0.1: sampling .."
            workers[place.split()[1]] = f"{name}, {action}"
    return {
        "workers": workers,
        "checksums": {name: found for name, call in checksums.items() if (found := _answer(call, None))},
        "queue": _answer(asked[0], {}),
        "pool": _answer(asked[1], {}),
        "published": [version.sha256 for version in in_force(_answer(asked[2], []))],
    }


def workers_of(actor: Any) -> dict[str, Any]:
    """Inside the pool's process: its live workers."""
    slots = actor._pool._slots.values()
    return {slot.name: slot.worker.actor for slot in slots if slot.worker is not None}


def _answer(call: Any, otherwise: Any) -> Any:
    try:
        return ray.get(call, timeout=ANSWER_SEC)
    except (GetTimeoutError, RayError):
        return otherwise


def main() -> int:
    address, run_name = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # where Ray prints what its raylets warn of
    ray.init(address=reach(address), namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    for _ in sys.stdin:
        print(json.dumps(look(run_name)), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
