"""SIGINT and SIGTERM, sent to a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

BODY = """
import os, signal, sys
from learner.signals import Interrupted, Signals
number, now = int(sys.argv[2]), [0.0]
with Signals(lambda: now[0]) as signals:
    if sys.argv[1] == "start-up":
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except Interrupted as interrupted:
            sys.exit(interrupted.status)
    signals.wait_for_batch()
    os.kill(os.getpid(), number)
    assert signals.received == number
    print(signals.name, flush=True)
    if sys.argv[1] in ("twice", "echo"):
        now[0] = 5.0 if sys.argv[1] == "twice" else 0.5
        os.kill(os.getpid(), number)
sys.exit(0)
"""


def run(mode, number):
    return subprocess.run(
        [sys.executable, "-c", BODY, mode, str(int(number))], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_start_up_ends_at_once_and_training_is_told(number, status):
    assert run("start-up", number).returncode == status
    noted = run("training", number)
    assert (noted.returncode, noted.stdout.strip()) == (0, number.name), noted.stderr
    assert run("echo", number).returncode == 0, "the same request, to the process and to its group"
    assert run("twice", number).returncode == status
