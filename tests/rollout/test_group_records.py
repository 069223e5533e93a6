"""Groups of final latents and of trajectories: what they refuse, and that their bytes bring everything back."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rollout.final_records import FinalGroup
from rollout.groups import read_group
from rollout.trajectory_records import TrajectoryGroup
from tests.tiny import assert_equal_groups, make_final_group, make_group, make_trajectory_group

GROUPS = {
    "pairs": make_final_group(7, pairs=3),
    "no pair": make_final_group(8, pairs=0),
    "pictures": make_final_group(9, pairs=2, single=True),
    "trajectories": make_trajectory_group(10),
    "steps": make_group(11),
}


@pytest.mark.parametrize("name", GROUPS)
def test_bytes_round_trip_whatever_the_kind(name):
    group = GROUPS[name]
    back = read_group(group.to_bytes())
    assert back.header(99) == group.header(99)
    assert back.latent_shape == (4, 8, 8)
    assert_equal_groups(group, back)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("z_win", torch.zeros(3, 8, 8), r"z_win has shape \(3, 8, 8\); expected \[T, C, H, W\]"),
        ("z_lose", torch.zeros(3, 4, 4, 4), r"z_lose is float32 \(3, 4, 4, 4\); expected .*\(3, 4, 8, 8\)"),
        ("z_lose", torch.full((3, 4, 8, 8), torch.nan), r"z_lose has non-finite values \(ordinal 7, worker worker-0\)"),
        ("z_lose", None, "z_lose and score_lose come together"),
        ("score_win", torch.zeros(4), r"score_win is float32 \(4,\)"),
        ("scores", torch.zeros(3), r"scores has shape \(3,\)"),
        ("final_score", float("inf"), "final_score is inf"),
    ],
)
def test_a_broken_contract_of_final_latents_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GROUPS["pairs"], **{field: value})


def test_a_pair_of_two_equal_pictures_is_refused():
    group = GROUPS["pairs"]
    z_lose = group.z_lose.clone()
    z_lose[1] = group.z_win[1]
    with pytest.raises(ValueError, match=r"pair 1 of ordinal 7 \('prompt 7'\) has two equal latents"):
        dataclasses.replace(group, z_lose=z_lose)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("x_prev", torch.zeros(2, 4, 8, 8), r"x_prev is float32 \(2, 4, 8, 8\)"),
        ("advantage", torch.full((10,), torch.nan), "advantage has non-finite values"),
        ("timestep", torch.zeros(10), "timestep is float32"),
    ],
)
def test_a_broken_contract_of_trajectories_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GROUPS["trajectories"], **{field: value})


@pytest.mark.parametrize("data", [b"", b"\x00" * 7, b"not a safetensors file at all", make_group().to_bytes()[:-5]])
def test_damaged_bytes_are_a_value_error(data):
    with pytest.raises(ValueError, match="not a preference group"):
        read_group(data)


@pytest.mark.parametrize(("kind", "what"), [(FinalGroup, "final latents"), (TrajectoryGroup, "trajectories")])
def test_bytes_of_another_kind_are_refused(kind, what):
    with pytest.raises(ValueError, match=f"not a group of {what}"):
        kind.from_bytes(make_group().to_bytes())
