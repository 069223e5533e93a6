"""The small interfaces between the rollout side's parts. Each says only what one side needs of the other.

    worker ── GroupSink ──► queue      ── WeightSource ──► mailbox                                     (blocking)
    pool   ── LedgerSource ──► queue   ── VersionSource ──► mailbox   ── WorkerHandle ──► workers       (asyncio)
    queue  ── PayloadStore ──► shards  ── VersionHistory ──► mailbox                                    (asyncio)

What the learner needs of queue and mailbox stands beside its loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rollout.ordinals import Ledger
from rollout.prompts import PromptItem
from rollout.versions import AdapterVersion

if TYPE_CHECKING:
    from rollout.group_record import GroupHeader
    from rollout.groups import Group


class GroupSink(Protocol):
    """Where a worker delivers (blocking)."""

    def put(self, payload: bytes, header: GroupHeader) -> str:
        """See `ReplayQueue.put`."""


class WeightSource(Protocol):
    """Where a worker gets weights (blocking)."""

    def fetch(self, known: AdapterVersion | None) -> tuple[AdapterVersion, bytes] | None:
        """The current version and its bytes; None when it is still `known`, or when nothing was published yet."""


class GroupSampler(Protocol):
    """What rolls prompts out: `StepwiseSampler` and its siblings."""

    @property
    def counters(self) -> Any:
        """Has `network_evaluations` and `scored_candidates`, totals since the start."""

    def sample(
        self, items: Sequence[PromptItem], *, policy_step: int, adapter_sha256: str, worker: str
    ) -> Sequence[Group]: ...


class VersionHistory(Protocol):
    """Which adapter versions there have been (asyncio)."""

    async def history(self) -> Sequence[AdapterVersion]:
        """All that were published, oldest first."""


class VersionSource(Protocol):
    """Tells the pool about new versions (asyncio)."""

    async def wait_change(
        self, known: AdapterVersion | None, timeout_sec: float | None = None
    ) -> AdapterVersion | None: ...


class LedgerSource(Protocol):
    """Tells the pool what the queue has (asyncio)."""

    async def ledger(self, known_epoch: str | None = None, timeout_sec: float | None = None) -> Ledger | None: ...

    async def stats(self) -> Mapping[str, Any]: ...


class QueueLost(RuntimeError):
    """The queue has been restarted and its groups are gone."""

    def __init__(
        self, message: str = "the replay queue was restarted and lost its groups: load a checkpoint's"
    ) -> None:
        super().__init__(message)


class PayloadLost(Exception):
    """Payloads are gone from a store: a shard died."""

    def __init__(self, keys: Sequence[int]) -> None:
        super().__init__(f"{len(keys)} payloads lost")
        self.keys = list(keys)


class PayloadStore(Protocol):
    """Keeps the queue's payloads (asyncio)."""

    async def put(self, key: int, payload: bytes) -> None: ...

    async def get(self, keys: Sequence[int]) -> list[bytes]:
        """Raises PayloadLost with every key that is gone."""

    def delete(self, keys: Sequence[int]) -> None: ...


@dataclass(frozen=True)
class ChunkReport:
    """How a worker fared with one chunk."""

    worker: str
    version: AdapterVersion | None
    """The weights used; None when nothing has been published yet."""
    delivered: int = 0
    """Groups that the queue has now, whether from this worker or from another."""
    superseded: tuple[str, ...] = ()
    """The queue's answers for groups of another version or batch than it wants; the chunk is to be looked at again."""
    refused: tuple[str, ...] = ()
    """The queue's answers for bad groups: this worker produces garbage."""
    closed: bool = False
    """The queue is closed: the run is over."""
    network_evaluations: int = 0
    scored_candidates: int = 0
    sampling_sec: float = 0.0
    putting_sec: float = 0.0
    peak_memory_bytes: int = 0
    """The most that the worker has held so far, of its GPU where it has one."""


class WorkerDied(Exception):
    """The worker's process is gone."""


class WorkerFailed(Exception):
    """The worker raised; the message is its error."""


class WorkerHandle(Protocol):
    """One worker as the pool sees it (asyncio). Every call raises WorkerDied or WorkerFailed."""

    async def load(self) -> None:
        """Load models; returns once the worker can take chunks."""

    async def run_chunk(self, items: Sequence[PromptItem], required_batch: int | None) -> ChunkReport: ...

    async def describe(self) -> str:
        """What it does now, answered while a chunk is running."""

    async def adapter_sha256(self) -> str:
        """Checksum recomputed from the network's live adapter."""

    def kill(self) -> None: ...


class WorkerFactory(Protocol):
    """Starts a worker's process; returns at once."""

    def __call__(self, worker_id: str) -> WorkerHandle: ...


class PeerLost(Exception):
    """Queue or mailbox does not answer now; it may come back."""
