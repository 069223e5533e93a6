"""A Ray of the run's own on this machine, seen from another shell that knows its address and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.learner.command import ROOT

HOLD = """
import sys
import ray
from learner import connection
connection.connect("local")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()  # until the test closes it
ray.shutdown()
"""


@pytest.mark.timeout(400)
def test_a_local_run_is_on_loopback_and_found_there_without_settings():
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, env=plain, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert run.stdin is not None and run.stdout is not None
    try:
        address = run.stdout.readline().strip()
        assert address.startswith("127.0.0.1:")
        scale = [sys.executable, "-m", "rollout.scale", "2", "--run", "absent", "--address", address]
        done = subprocess.run(scale, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=200)
        assert "error: no run named 'absent' on this cluster; running: none" in done.stderr, done.stderr
    finally:
        run.stdin.close()
        run.wait(200)
