"""One asyncio primitive under queue, mailbox and pool: state changed, so everyone who waits looks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Wakeup:
    """Wakes every present waiter. Nothing is lost as long as a waiter tests its condition without awaiting in between:

    while not condition():
        await wakeup.wait()
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        """Wake everyone who waits now; later waiters wait for the next call."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, timeout_sec: float | None = None) -> bool:
        """Wait for the next `fire`; False when `timeout_sec` passes first."""
        waiter = asyncio.ensure_future(self._event.wait())
        try:  # not asyncio.wait_for: before Python 3.12 it may swallow a cancellation that comes with the event
            done, _ = await asyncio.wait({waiter}, timeout=timeout_sec)
        finally:
            waiter.cancel()
        return bool(done)

    async def until(self, condition: Callable[[], bool], timeout_sec: float | None = None) -> bool:
        """Wait until `condition()` holds, tested now and after every `fire`; False when the time passes first."""
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        while not condition():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            await self.wait(left)
        return True
