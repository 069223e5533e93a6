"""What the replay queue refuses: payloads that are not what they claim, and adapters that were never published."""

from __future__ import annotations

import asyncio

from rollout.group_record import GroupHeader
from rollout.groups import read_group
from rollout.interfaces import VersionHistory
from rollout.versions import AdapterVersion, in_force

_INLINE_BYTES = 1 << 20  # below this, opening a payload takes less time than handing it to a thread


async def find_fault(
    payload: bytes, header: GroupHeader, capacity_bytes: int, latent_shape: tuple[int, ...] | None
) -> str | None:
    """What is wrong with a payload, naming group and worker; None when it is a valid group that fits its header."""
    where = f"group {header.ordinal} of {header.worker}"
    if (size := len(payload)) > capacity_bytes:
        return f"{where} has {size} bytes; queue.capacity_bytes is {capacity_bytes}"
    try:
        if size <= _INLINE_BYTES:
            group = read_group(payload, arrays=True)
        else:
            group = await asyncio.to_thread(read_group, payload, arrays=True)
    except ValueError as error:
        return f"{where}: {error}"
    if (found := group.header(size)) != header:
        return f"{where}: its bytes say {found}, its header {header}"
    if latent_shape is not None and (shape := group.latent_shape) != latent_shape:
        return f"{where}: latents are {shape}; the learner's are {latent_shape}"
    return None


class VersionBook:
    """The adapter versions that groups may carry, asked for when an unknown one turns up."""

    def __init__(self, source: VersionHistory | None) -> None:
        """Without a source every version is accepted."""
        self._source = source
        self._published: list[AdapterVersion] = []
        self._in_force: list[AdapterVersion] = []

    async def refresh(self) -> None:
        if self._source is not None:
            self._published = list(await self._source.history())
            self._in_force = in_force(self._published)

    def forget(self) -> None:
        """The learner went back to a checkpoint: versions may have been taken back, so ask again."""
        self._published, self._in_force = [], []

    def knows(self, header: GroupHeader, batch: int | None = None) -> bool:
        """Is the group's adapter in force (with `batch`, if given)?"""
        return self._source is None or any(
            _same(version, header) and batch in (None, version.batch) for version in self._in_force
        )

    def knew(self, header: GroupHeader) -> bool:
        """Was it ever published?"""
        return any(_same(version, header) for version in self._published)


def _same(version: AdapterVersion, header: GroupHeader) -> bool:
    return (version.step, version.sha256) == (header.policy_step, header.adapter_sha256)
