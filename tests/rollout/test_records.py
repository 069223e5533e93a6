"""The preference group: what it refuses, and that its bytes bring everything back."""

import dataclasses

import pytest
import torch

from rollout.records import PreferenceGroup
from tests.tiny import assert_equal_groups, make_group


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("pairs", [0, 3])
def test_bytes_round_trip(shared, pairs):
    group = make_group(7, pairs=pairs, shared=shared, policy_step=12)
    back = PreferenceGroup.from_bytes(group.to_bytes())
    assert_equal_groups(group, back)
    assert back.header(99) == group.header(99)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("x_t", torch.zeros(2, 4, 8, 8), r"x_t is float32 \(2, 4, 8, 8\)"),
        ("x_prev_lose", torch.zeros(3, 4, 8, 8, dtype=torch.float64), "x_prev_lose is float64"),
        ("x_prev_lose", torch.full((3, 4, 8, 8), torch.nan), "x_prev_lose has non-finite values .*worker-0"),
        ("timestep", torch.zeros(3), "timestep is float32"),
        ("score_win", torch.zeros(4), r"score_win is float32 \(4,\)"),
        ("final_score", float("nan"), "final_score is nan"),
        ("scores", torch.zeros(3), r"scores has shape \(3,\)"),
    ],
)
def test_a_broken_contract_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_group(), **{field: value})


def test_different_states_need_both_reference_means():
    with pytest.raises(ValueError, match="ref_mean_lose is missing"):
        dataclasses.replace(make_group(shared=False), ref_mean_lose=None)


@pytest.mark.parametrize("data", [b"", b"\x00" * 7, b"not a safetensors file at all", make_group().to_bytes()[:-5]])
def test_damaged_bytes_are_a_value_error(data):
    with pytest.raises(ValueError, match="not a preference group"):
        PreferenceGroup.from_bytes(data)
