"""Dealing pairs to updates and micro-batches."""

from __future__ import annotations

import pytest
import torch

from learner.batching import collate, split_micro_batches, split_updates, update_offset
from tests.tiny import make_group


def test_the_hash_is_a_fixed_number():
    assert update_offset(0, 0) == 0x2BC42E553A894A51
    assert update_offset(0, 1) != update_offset(1, 0)


def test_pairs_go_to_updates_by_ordinal_and_place():
    groups = [make_group(7, pairs=5), make_group(8, pairs=2)]
    dealt = split_updates(groups, seed=3, updates=4)
    for place, group in enumerate(groups):
        for pair in range(group.num_pairs):
            assert (place, pair) in dealt[(pair + update_offset(3, group.ordinal)) % 4]
    assert sum(map(len, dealt)) == 7


def test_the_split_does_not_depend_on_the_number_of_ranks():
    groups = [make_group(n, pairs=n % 4) for n in range(8)]

    def names(share, update):
        return [(share[place].ordinal, pair) for place, pair in split_updates(share, seed=1, updates=3)[update]]

    for update in range(3):
        whole = names(groups, update)
        assert whole == names(groups[:4], update) + names(groups[4:], update)
        assert whole == [pair for group in groups for pair in names([group], update)]


@pytest.mark.parametrize(
    ("pairs", "count", "lengths"), [(7, 3, [3, 2, 2]), (2, 4, [1, 1, 0, 0]), (0, 2, [0, 0]), (6, 2, [3, 3])]
)
def test_micro_batches_are_even_and_in_order(pairs, count, lengths):
    parts = split_micro_batches([(0, n) for n in range(pairs)], count)
    assert [len(part) for part in parts] == lengths
    assert [pair for part in parts for pair in part] == [(0, n) for n in range(pairs)]


@pytest.mark.parametrize("shared", [True, False])
def test_rows_are_the_pairs_with_their_group_s_conditioning(shared):
    groups = [make_group(0, pairs=3, shared=shared), make_group(1, pairs=2, shared=shared)]
    batch = collate(groups, [(1, 1), (0, 2)], "cpu", padding_timestep=1)
    for row, (place, pair) in enumerate([(1, 1), (0, 2)]):
        for field in ("x_t", "x_prev_win", "x_prev_lose", "timestep", "ref_mean_win"):
            assert torch.equal(getattr(batch, field)[row], getattr(groups[place], field)[pair])
        for name, value in groups[place].conditioning.items():
            assert torch.equal(batch.conditioning.tensors[name][row], value)
    assert batch.weight.tolist() == [1, 1]
    assert (batch.x_t_lose is None) is shared and (batch.ref_mean_lose is None) is shared
    assert batch.sources[0] == "'prompt 1' (seed 1)"


@pytest.mark.parametrize("shared", [True, False])
def test_a_rank_without_pairs_gets_one_row_of_no_weight(shared):
    batch = collate([make_group(0, pairs=0, shared=shared)], [], "cpu", padding_timestep=951)
    assert batch.x_t.shape == (1, 4, 8, 8) and not batch.x_t.any()
    assert batch.weight.tolist() == [0] and batch.timestep.tolist() == [951]
    assert len(batch.conditioning) == 1
    assert (batch.x_t_lose is None) is shared


def test_groups_of_two_kinds_are_refused():
    groups = [make_group(0, shared=True), make_group(1, shared=False)]
    with pytest.raises(ValueError, match="x_t_lose is given by some groups"):
        collate(groups, [(0, 0), (1, 0)], "cpu", padding_timestep=1)
