"""Where the replay queue's payloads lie by default: in its own memory. `replay_actor.py` has the sharded store."""

from __future__ import annotations

from collections.abc import Sequence

from rollout.interfaces import PayloadLost


class LocalStore:
    """Payloads in this process."""

    def __init__(self) -> None:
        self._payloads: dict[int, bytes] = {}

    async def put(self, key: int, payload: bytes) -> None:
        self._payloads[key] = payload

    async def get(self, keys: Sequence[int]) -> list[bytes]:
        if missing := [key for key in keys if key not in self._payloads]:
            raise PayloadLost(missing)
        return [self._payloads[key] for key in keys]

    def delete(self, keys: Sequence[int]) -> None:
        for key in keys:
            self._payloads.pop(key, None)
