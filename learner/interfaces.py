"""What the learner's loop needs of the rest of the run: batches, a place for weights, a place for figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rollout.versions import AdapterVersion


class Queue(Protocol):
    """Where a learner rank's batches come from (blocking calls): the replay queue (`rollout.replay.ReplayQueue`), or a
    data set (`learner.datasets.offline.OfflineQueue`)."""

    def expect(self, latent_shape: Sequence[int]) -> None: ...

    def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None: ...

    def retire(self, batch: int) -> None: ...

    def stats(self) -> Mapping[str, Any]: ...

    def state_dict(self) -> bytes: ...

    def load_state_dict(self, state: bytes | None) -> None: ...


class WeightSink(Protocol):
    """The weight mailbox as rank 0 sees it (blocking calls). See `rollout.weights.WeightMailbox`."""

    def latest_version(self) -> AdapterVersion | None: ...

    def publish(self, version: AdapterVersion, state: bytes) -> None: ...


class MetricsSink(Protocol):
    """Telemetry as rank 0 sees it (blocking calls). See `learner.telemetry.Telemetry`."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def resume_at(self, step: int) -> None: ...


class EvaluationHook(Protocol):
    """Starts an evaluation of published weights; returns at once."""

    def __call__(self, version: AdapterVersion, state: bytes) -> None: ...
