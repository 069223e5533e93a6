"""Waiting for other processes and their files, which fire no event here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


def until(
    condition: Callable[[], Any],
    timeout_sec: float,
    explain: Callable[[], str],
    ended: Callable[[], Any] = lambda: None,
    pause_sec: float = 0.1,
) -> Any:
    """The first true value of `condition`.

    The test fails with the end of what `explain` says once the time is over, or `ended` gives anything but None, as
    a process's `poll` does. Both are asked before the last look: what came at the very end has come.
    """
    deadline = time.monotonic() + timeout_sec
    while True:
        over = ended() is not None or time.monotonic() > deadline
        if found := condition():
            return found
        if over:
            pytest.fail(f"did not come:\n{explain()[-4000:]}")
        time.sleep(pause_sec)
