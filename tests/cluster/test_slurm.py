"""cluster/slurm.sh with real `ray start` and a real run; only Slurm's own commands, which are not here, are played."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from learner.committed import list_committed
from learner.summary import read_summary
from tests.cluster.nodes import FOREIGN, READY_SEC
from tests.learner.command import MARKER, ROOT, kill_marked, marked, tiny_settings
from tests.polling import until

SLURM = {
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',  # every node is this machine
    "scontrol": 'if [ "$1" = show ]; then printf "first\\nsecond\\n"; else touch "$QUEUED_AGAIN"; fi',
}


class Allocation:
    """One job's script; what Slurm would end with the job is ended by `close`."""

    def __init__(self, folder: Path, settings: list[str]) -> None:
        self.marker = uuid.uuid4().hex
        self.queued_again = folder / "queued-again"
        self.queued_again.unlink(missing_ok=True)
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "two", "SLURM_SUBMIT_DIR": str(ROOT)}
        path = os.pathsep.join([str(commands(folder)), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.output = folder / "output.log"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                ["bash", "cluster/slurm.sh", *settings], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                env={
                    **kept, **slurm, "PATH": path, "QUEUED_AGAIN": str(self.queued_again), MARKER: self.marker,
                    "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1",
                },
            )  # fmt: skip

    def until(self, condition):
        return until(condition, READY_SEC, self.output.read_text, self.process.poll)

    def close(self) -> None:
        kill_marked(self.marker)
        self.process.wait()
        shutil.rmtree(f"/tmp/ray-{os.getpid()}", ignore_errors=True)


def commands(folder: Path) -> Path:
    """Slurm's, as far as the script calls them."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    for name, body in SLURM.items():
        (place / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (place / name).chmod(0o755)
    return place


@pytest.mark.slow
@pytest.mark.timeout(6 * READY_SEC)
def test_a_job_whose_time_is_over_saves_is_queued_again_and_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    settings = [*tiny_settings(tmp_path), "run.name=slurm", "learner.ranks=1", "learner.max_batches=10000"]
    first = Allocation(tmp_path, [*settings, f"run.dir={run_dir}"])
    try:
        first.until(lambda: list_committed(run_dir)[1:])
        assert {pid for pid, title in marked(first.marker).items() if "ray::RolloutWorkerActor" in title}
        first.process.send_signal(signal.SIGTERM)
        status = first.process.wait(READY_SEC)
        assert status == 143 and first.queued_again.exists(), first.output.read_text()
    finally:
        first.close()
    saved = len(list_committed(run_dir)) and int(list_committed(run_dir)[-1].name.removeprefix("batch-"))

    again = Allocation(tmp_path, [*settings, f"run.dir={run_dir}", f"learner.max_batches={saved + 1}"])
    try:
        status = again.process.wait(2 * READY_SEC)
        assert status == 0 and not again.queued_again.exists(), again.output.read_text()
        assert f"Resuming after batch {saved}" in again.output.read_text()
    finally:
        again.close()
    assert read_summary(run_dir / "summary.json").groups.trained == 4 * (saved + 1)
