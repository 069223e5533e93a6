"""Are two checkpoints the same, bit for bit?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def assert_checkpoints_equal(left: Path, right: Path) -> None:
    """Optimiser, weights, generators of every rank, and queue."""
    names = [path.relative_to(left) for path in sorted(left.rglob("*.pt"))]
    assert names and names == [path.relative_to(right) for path in sorted(right.rglob("*.pt"))]
    for name in names:
        pair = [torch.load(side / name, weights_only=False) for side in (left, right)]
        assert_same(*pair, where=str(name))
    plain = sorted(path.name for path in left.glob("*.safetensors"))
    assert "queue.safetensors" in plain and plain == sorted(path.name for path in right.glob("*.safetensors"))
    for name in plain:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def assert_same(left: Any, right: Any, where: str) -> None:
    """Equal in every tensor and plain value; `where` is named otherwise."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{number}]")
    elif isinstance(left, int | float | str | bool | None):
        assert left == right, where
