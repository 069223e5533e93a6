"""One pair of pictures with a preference, the columns it comes from, and which rows a run takes.

Every error names file and row (`key`), the column, the value and the reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

LABELS = ("caption", "label_0", "label_1", "num_example_per_prompt", "has_label", "are_different")
"""Pick-a-Pic's columns (v1) that are small enough to be read ahead of the pictures."""
IMAGES = ("jpg_0", "jpg_1")
REQUIRED = (*LABELS, *IMAGES)
Split = Literal["train", "validation", "all"]
_BUCKETS = 10_000


class DataError(ValueError):
    """Data that cannot be trained on. The message names the file and the row, what is wrong, and the fix."""


@dataclass(frozen=True)
class PairRow:
    """Two pictures for one caption, and which of them was preferred."""

    key: str
    """File and row, for messages; unique in its source."""
    caption: str
    image_0: bytes
    """Encoded picture, in any format that Pillow reads; `learner.datasets.images.decode_image` reads it."""
    image_1: bytes
    label_0: float
    """1 where this picture was preferred, 0 where the other was, 0.5 each for a tie; both sum to 1."""
    label_1: float
    weight: float
    """1 / number of examples that share the caption."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Every other plain column as text: annotator, taste, model, ..."""


@dataclass(frozen=True)
class Selection:
    """Which rows of a source are taken."""

    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Column to the values that are kept (a taste: annotator, tag); several columns must all agree."""
    only_different: bool = True
    """Leave out rows whose two pictures are the same (`are_different` false)."""
    split: Split = "all"
    held_out: float = 0.0
    """Share of captions that `validation` has and `train` has not; the same captions whatever else changes."""

    def keeps(self, columns: Mapping[str, Any]) -> bool:
        """Whether a row with these columns is taken; one without a label never is."""
        if columns["has_label"] is False or (self.only_different and columns["are_different"] is False):
            return False
        if any(str(columns[name]) not in kept for name, kept in self.where.items()):
            return False
        return self.split == "all" or is_held_out(str(columns["caption"]), self.held_out) == (
            self.split == "validation"
        )

    def require_columns(self, present: Sequence[str], source: str) -> None:
        """Raises DataError where the source lacks a column that the selection reads."""
        if absent := sorted(set(self.where) - set(present)):
            raise DataError(f"{source}: data.where names column {absent[0]}; columns here: {', '.join(present)}")


def is_held_out(caption: str, share: float) -> bool:
    """True for about `share` of all captions, decided by the caption alone."""
    digest = hashlib.sha256(caption.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _BUCKETS < share * _BUCKETS


def require_pair_columns(present: Sequence[str], source: str) -> None:
    """Raises DataError listing Pick-a-Pic's columns that are not `present`."""
    if absent := [name for name in REQUIRED if name not in present]:
        raise DataError(
            f"{source}: missing column{'s' if len(absent) > 1 else ''} {', '.join(absent)}; "
            f"it has {', '.join(present) or 'none'}"
        )


def check_labels(columns: Mapping[str, Any], key: str) -> None:
    """Raises DataError where a labelled row's caption, labels or example count cannot be used."""
    if columns["has_label"] is None:
        raise DataError(f"{key}: has_label is null; it must be true or false")
    if columns["has_label"] is False:
        return
    caption = columns["caption"]
    if not isinstance(caption, str) or not caption.strip():
        raise DataError(f"{key}: caption is {'null' if caption is None else repr(caption)}; a text is wanted")
    for name in ("label_0", "label_1", "num_example_per_prompt"):
        value = columns[name]
        if value is None:
            raise DataError(f"{key}: {name} is null; a row without a preference must have has_label false")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{key}: {name} is {value!r}; a finite number is wanted")
    first, second = columns["label_0"], columns["label_1"]
    if first < 0 or second < 0 or abs(first + second - 1) > 1e-6:
        raise DataError(f"{key}: label_0 = {first} and label_1 = {second}; 0 to 1, with sum 1, are wanted")
    if columns["num_example_per_prompt"] < 1:
        raise DataError(f"{key}: num_example_per_prompt is {columns['num_example_per_prompt']}; at least 1 is wanted")


def row_from_columns(columns: Mapping[str, Any], key: str) -> PairRow:
    """A row of Pick-a-Pic's columns. Raises DataError naming key and column."""
    check_labels(columns, key)
    first, second = (_bytes(columns[name], name, key) for name in IMAGES)
    return PairRow(
        key=key,
        caption=columns["caption"],
        image_0=first,
        image_1=second,
        label_0=float(columns["label_0"]),
        label_1=float(columns["label_1"]),
        weight=1.0 / float(columns["num_example_per_prompt"]),
        tags={
            name: str(value)
            for name, value in columns.items()
            if name not in REQUIRED and isinstance(value, str | int | float | bool)
        },
    )


def _bytes(value: Any, name: str, key: str) -> bytes:
    """Bytes as such, or in the struct that `datasets` stores pictures in."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if not isinstance(value, bytes) or not value:
        raise DataError(f"{key}: {name} is {'null' if value is None else 'empty or no bytes'}; a picture is wanted")
    return value
