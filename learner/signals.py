"""SIGINT and SIGTERM as a note that the driver reads between two looks at the run."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Signals:
    """Notes the first SIGINT or SIGTERM; a second one ends the process at once. Ray installs its own before."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    @property
    def name(self) -> str:
        return "no signal" if self.received is None else signal.Signals(self.received).name

    def __enter__(self) -> Signals:
        self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = number
