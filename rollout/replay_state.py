"""The queue's books, which always close, and their byte form for checkpoints (safetensors + JSON, no pickle)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from rollout.array_bytes import read_arrays, read_metadata
from rollout.group_record import GroupHeader
from rollout.ordinals import OrdinalSet

FORMAT_VERSION = 1


@dataclass
class Books:
    """Counts of groups. At any moment: produced = trained + sum(dropped) + those that the queue holds."""

    produced: int = 0
    trained: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason: `stale`, or `lost` with a shard (such an ordinal is rolled out, and counted as produced, again)."""
    refused: dict[str, int] = field(default_factory=dict)
    """Never entered, so not produced: `invalid`, `unknown_version`, `superseded`."""
    duplicates: int = 0
    pairs_trained: int = 0

    def drop(self, reason: str, groups: int) -> None:
        if groups:
            self.dropped[reason] = self.dropped.get(reason, 0) + groups

    def refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1


@dataclass
class QueueState:
    """Everything a queue needs to go on where another one stopped."""

    schedule: str
    groups_per_batch: int
    next_batch: int
    """The first batch that is not trained."""
    learner_step: int
    books: Books
    done: OrdinalSet
    groups: list[tuple[GroupHeader, bytes]]
    """Held groups in the order of arrival."""

    def to_bytes(self) -> bytes:
        plain = {
            "format": FORMAT_VERSION,
            "schedule": self.schedule,
            "groups_per_batch": self.groups_per_batch,
            "next_batch": self.next_batch,
            "learner_step": self.learner_step,
            "books": asdict(self.books),
            "done_below": self.done.below,
            "done_beyond": self.done.beyond,
            "headers": [asdict(header) for header, _ in self.groups],
        }
        tensors = {
            f"payload.{header.ordinal}": np.frombuffer(payload, dtype=np.uint8) for header, payload in self.groups
        }
        return save_safetensors(tensors, metadata={"queue": json.dumps(plain)})

    @classmethod
    def from_bytes(cls, data: bytes) -> QueueState:
        """Inverse of `to_bytes`. Raises ValueError for damaged or foreign bytes."""
        try:
            plain: dict[str, Any] = json.loads(read_metadata(data)["queue"])
            arrays = read_arrays(data)
            if plain["format"] != FORMAT_VERSION:
                raise ValueError(f"format {plain['format']}; this version reads {FORMAT_VERSION}")
            headers = [GroupHeader(**header) for header in plain["headers"]]
            return cls(
                schedule=plain["schedule"],
                groups_per_batch=plain["groups_per_batch"],
                next_batch=plain["next_batch"],
                learner_step=plain["learner_step"],
                books=Books(**plain["books"]),
                done=OrdinalSet(plain["done_below"], plain["done_beyond"]),
                groups=[(header, arrays[f"payload.{header.ordinal}"].tobytes()) for header in headers],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of a replay queue ({len(data)} bytes): {error}") from error
