"""The kinds of group that travel from a source to the learner, told apart by the key of their metadata."""

from __future__ import annotations

from collections.abc import Mapping

from rollout.array_bytes import read_metadata
from rollout.final_records import FinalGroup
from rollout.records import PreferenceGroup
from rollout.trajectory_records import TrajectoryGroup

Group = PreferenceGroup | FinalGroup | TrajectoryGroup

KINDS: Mapping[str, type[Group]] = {kind.KEY: kind for kind in (PreferenceGroup, FinalGroup, TrajectoryGroup)}
"""Metadata key -> the record of such bytes."""


def read_group(data: bytes, *, arrays: bool = False) -> Group:
    """The group in `data`, whichever kind it is. Raises ValueError for damaged or foreign bytes.

    `arrays`: numpy arrays instead of tensors, see `rollout.group_record`.
    """
    try:
        found = read_metadata(data).keys() & KINDS.keys()
    except ValueError as error:
        raise ValueError(f"not a preference group ({len(data)} bytes): {error}") from error
    kind = KINDS[found.pop()] if found else PreferenceGroup
    return kind.from_bytes(data, arrays=arrays)
