"""From a rank's groups to the rows of its forward passes.

    groups of a global batch ─► pairs ─► U updates (by a hash, whoever holds the group) ─► n micro-batches a rank

Which update a pair belongs to depends on the run's seed, the group's ordinal and the pair's place in it: not on the
number of ranks. Ranks with fewer pairs run rows of weight 0, so that all make the same number of forward passes.
Shapes: M rows of a micro-batch, C H W latent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rollout.conditioning import Conditioning
from rollout.groups import Group
from rollout.records import PreferenceGroup

PairIndex = tuple[int, int]
"""(place of the group in the rank's share, place of the pair in the group)"""


@dataclass(frozen=True)
class PairBatch:
    """M pairs as rows of one forward pass, conditioning expanded."""

    x_t: Tensor
    """float32 [M, C, H, W]: what both halves leave, or the winner's where `x_t_lose` is given."""
    x_t_lose: Tensor | None
    """float32 [M, C, H, W]; None where the halves share `x_t`."""
    x_prev_win: Tensor
    """float32 [M, C, H, W]"""
    x_prev_lose: Tensor
    """float32 [M, C, H, W]"""
    timestep: Tensor
    """int64 [M]"""
    ref_mean_win: Tensor | None
    """float32 [M, C, H, W]; None when the learner evaluates the reference."""
    ref_mean_lose: Tensor | None
    """float32 [M, C, H, W]; None where shared with the winner's."""
    conditioning: Conditioning
    """M rows."""
    weight: Tensor
    """float32 [M]: 1, or 0 for padding."""
    sources: tuple[str, ...]
    """Prompt and seed of each row, for messages."""


def split_updates(groups: Sequence[Group], seed: int, updates: int) -> list[list[PairIndex]]:
    """Deal the pairs of `groups` to `updates` updates: pair j of a group goes to (j + hash(seed, ordinal)) mod U."""
    dealt: list[list[PairIndex]] = [[] for _ in range(updates)]
    for place, group in enumerate(groups):
        offset = update_offset(seed, group.ordinal)
        for pair in range(group.num_pairs):
            dealt[(pair + offset) % updates].append((place, pair))
    return dealt


def update_offset(seed: int, ordinal: int) -> int:
    """A hash of the run's seed and the ordinal that is the same in every process and Python version."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{ordinal}".encode(), digest_size=8).digest(), "big")


def split_micro_batches(pairs: Sequence[PairIndex], count: int) -> list[list[PairIndex]]:
    """`count` parts of nearly equal length, in order; the last ones are empty where pairs run out."""
    base, longer = divmod(len(pairs), count)
    parts, start = [], 0
    for place in range(count):
        end = start + base + (place < longer)
        parts.append(list(pairs[start:end]))
        start = end
    return parts


def collate(
    groups: Sequence[PreferenceGroup], pairs: Sequence[PairIndex], device: torch.device | str, padding_timestep: int
) -> PairBatch:
    """The rows of `pairs`; where there is none, one row of zeros and weight 0 at `padding_timestep`."""
    if not pairs:
        return _padding(groups[0], device, padding_timestep)

    def gather(field: str) -> Tensor:
        return torch.stack([getattr(groups[place], field)[pair] for place, pair in pairs]).to(device)

    def gather_optional(field: str) -> Tensor | None:
        present = {getattr(groups[place], field) is not None for place, _ in pairs}
        if len(present) > 1:
            raise ValueError(f"{field} is given by some groups of one batch and not by others")
        return gather(field) if present.pop() else None

    return PairBatch(
        x_t=gather("x_t"),
        x_t_lose=gather_optional("x_t_lose"),
        x_prev_win=gather("x_prev_win"),
        x_prev_lose=gather("x_prev_lose"),
        timestep=gather("timestep"),
        ref_mean_win=gather_optional("ref_mean_win"),
        ref_mean_lose=gather_optional("ref_mean_lose"),
        conditioning=_conditioning([groups[place] for place, _ in pairs], device),
        weight=torch.ones(len(pairs), device=device),
        sources=tuple(f"{groups[place].prompt!r} (seed {groups[place].seed})" for place, _ in pairs),
    )


def _padding(group: PreferenceGroup, device: torch.device | str, timestep: int) -> PairBatch:
    row = torch.zeros((1, *group.x_prev_win.shape[1:]), device=device)
    return PairBatch(
        x_t=row,
        x_t_lose=None if group.x_t_lose is None else row,
        x_prev_win=row,
        x_prev_lose=row,
        timestep=torch.tensor([timestep], dtype=torch.int64, device=device),
        ref_mean_win=None if group.ref_mean_win is None else row,
        ref_mean_lose=None if group.ref_mean_lose is None else row,
        conditioning=_conditioning([group], device),
        weight=torch.zeros(1, device=device),
        sources=("padding",),
    )


def _conditioning(groups: Sequence[PreferenceGroup], device: torch.device | str) -> Conditioning:
    return Conditioning.from_rows([group.conditioning for group in groups]).to(device)
