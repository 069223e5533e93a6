"""Ranks under Ray Train's controller, seen from the machine: nothing takes a living controller for dead, and a dead
one's ranks end; a lost rank is told of. Real Ray, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.learner.command import ROOT
from tests.polling import until

RANKS = """
import sys
from pathlib import Path
from configs.spm import TrainingSection
from learner import connection
from learner.lost_ranks import LossReader
from learner.ranks import LearnerThread, rank_trainer

def body(given):
    import os, time
    from pathlib import Path
    from ray.train import get_context
    rank, folder = get_context().get_world_rank(), Path(given["folder"])
    if rank == 1 and not (folder / "lost").exists():
        (folder / "lost").touch()
        time.sleep(3)  # one that dies while the others are launched is a failure of the controller to Ray Train
        os._exit(1)
    (folder / f"rank{rank}").write_text(str(os.getpid()))
    time.sleep(600)
    return {}

connection.connect("local")
folder = Path(sys.argv[1])
training = TrainingSection(ranks=2, resources={"cpus": 0.5})
thread = LearnerThread(rank_trainer(body, {"folder": str(folder)}, training, folder, max_failures=1))
losses = LossReader(folder, 1)
thread.start()
thread.join()
print(*losses.new(), f"ended: {thread.error}", sep=chr(10), flush=True)
sys.stdin.read()  # until the test has looked
"""


def pid_in(path: Path) -> int:
    """What a rank wrote; 0, which nothing has, while it writes."""
    return int(path.read_text() or 0)


def named(processes: list[psutil.Process], part: str) -> list[psutil.Process]:
    """Those whose title has `part` in it."""
    return [process for process in processes if process.is_running() and part in " ".join(process.cmdline())]


@pytest.mark.timeout(400)
def test_ranks_outlive_no_controller_and_nobody_but_ray_watches_it(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command, pipe = [sys.executable, "-c", RANKS, str(tmp_path)], subprocess.PIPE
    run = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe)
    try:
        started = [tmp_path / "rank1", tmp_path / "rank0"]  # rank 1 writes once it was lost; rank 0's may be of before
        until(lambda: all(path.is_file() and psutil.pid_exists(pid_in(path)) for path in started), 200, str, run.poll)
        ranks = [psutil.Process(pid_in(path)) for path in started]
        processes = psutil.Process(run.pid).children(recursive=True)
        assert not named(processes, "PlacementGroupCleaner"), "it would end the ranks when it finds another cluster"
        (controller,) = named(processes, "TrainController")
        controller.send_signal(signal.SIGKILL)
        assert run.stdout is not None
        said = []
        while not said or not said[-1].startswith("ended: "):  # Ray's own lines come between
            said.append(run.stdout.readline())
            assert said[-1], said
        assert "died" in said[-1]
        (lost,) = [line for line in said if line.startswith("lost")]
        assert lost.startswith("lost rank 1: ActorDiedError: The actor is dead because its worker process has died."), (
            lost
        )
        assert lost.endswith("All ranks start again from the last checkpoint (restart 1 of 1)\n")
        until(lambda: not any(rank.is_running() for rank in ranks), 60, lambda: str(ranks))
    finally:
        run.kill()  # its cluster ends with it
        run.communicate()
