"""What a prompt becomes before the network reads it: named tensors whose rows belong to prompts.

Shapes: B rows, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Tensors [B, ...] by name; which names there are is the family's business."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def rows(self, index: Tensor | slice) -> Conditioning:
        """The rows at `index` (int64 [M] or a slice)."""
        return Conditioning({name: value[index] for name, value in self.tensors.items()})

    def repeat(self, times: int) -> Conditioning:
        """Each row `times` times in a row: [B * times, ...]."""
        return Conditioning({name: value.repeat_interleave(times, dim=0) for name, value in self.tensors.items()})

    def row(self, index: int) -> dict[str, Tensor]:
        """One prompt's tensors without batch dimension, on the CPU in float32, as a record carries them."""
        return {name: value[index].detach().float().cpu().clone() for name, value in self.tensors.items()}

    def to(self, device: torch.device | str) -> Conditioning:
        return Conditioning({name: value.to(device) for name, value in self.tensors.items()})

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Tensor]]) -> Conditioning:
        """Inverse of `row` for a batch."""
        return cls({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    @classmethod
    def concatenate(cls, parts: Iterable[Conditioning]) -> Conditioning:
        parts = list(parts)
        return cls({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})
