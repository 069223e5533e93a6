"""The kinds of group that travel from a source to the learner, told apart by the key of their metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rollout.array_bytes import read_metadata
from rollout.final_records import FINAL_KEY, FinalGroup
from rollout.records import PreferenceGroup
from rollout.trajectory_records import TRAJECTORY_KEY, TrajectoryGroup

Group = PreferenceGroup | FinalGroup | TrajectoryGroup

KINDS: Mapping[str, Callable[..., Group]] = {
    "group": PreferenceGroup.from_bytes,
    FINAL_KEY: FinalGroup.from_bytes,
    TRAJECTORY_KEY: TrajectoryGroup.from_bytes,
}
"""Metadata key -> how such bytes are read."""


def read_group(data: bytes, *, arrays: bool = False) -> Group:
    """The group in `data`, whichever kind it is. Raises ValueError for damaged or foreign bytes.

    `arrays`: numpy arrays instead of tensors, see `rollout.record_bytes`.
    """
    try:
        found = read_metadata(data).keys() & KINDS.keys()
    except ValueError as error:
        raise ValueError(f"not a preference group ({len(data)} bytes): {error}") from error
    return KINDS[found.pop() if found else "group"](data, arrays=arrays)
