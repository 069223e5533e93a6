"""SIGINT and SIGTERM: an end at once while the run starts, a note that the driver reads once it trains."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_ECHO_SEC = 1.0


class Interrupted(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status as a shell has it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class Signals:
    """Notes the first SIGINT or SIGTERM; a second one ends the process at once.

    What follows within a second is an echo of the first: `timeout` and job systems signal the command, then its group.

    Before `wait_for_batch` there is no batch to finish: the first one raises Interrupted where the process is.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.received: int | None = None
        self._clock = clock
        self._received_sec = 0.0
        self._raises = True
        self._former: dict[int, Any] = {}

    @property
    def name(self) -> str:
        return "no signal" if self.received is None else signal.Signals(self.received).name

    def wait_for_batch(self) -> None:
        """From now on a signal is only noted. Raises Interrupted when one has come already."""
        self._raises = False
        if self.received is not None:
            raise Interrupted(self.received)

    def install(self) -> None:
        """Take the handlers, again after `ray.init`, which installs its own for SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            former = signal.signal(number, self._note)
            self._former.setdefault(number, former)

    def __enter__(self) -> Signals:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if self._clock() - self._received_sec < _ECHO_SEC:
                return
            raise SystemExit(128 + number)
        self.received, self._received_sec = number, self._clock()
        if self._raises:
            raise Interrupted(number)
