"""DDPO's advantages: running statistics of each prompt, in numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learner.advantages import PromptRewards
from tests.learner.inprocess import single_process_group
from tests.tiny import make_trajectory_group


def close(*values):
    return [pytest.approx(value, abs=1e-4) for value in values]


def test_a_prompt_that_comes_first_has_its_group_s_statistics():
    """Rewards 1, 2, 3: mean 2, population deviation sqrt(2 / 3) = 0.81650."""
    rewards = PromptRewards(16)
    rewards.add("a", [1, 2, 3])
    assert rewards.advantages("a", [1, 2, 3]) == close(-1.22474, 0, 1.22474)


def test_a_prompt_that_comes_again_has_running_ones():
    """1 .. 6: mean 3.5, deviation sqrt(35 / 12) = 1.70783. So 4, 5, 6 are 0.29277, 0.87831 and 1.46385: all better
    than this prompt's mean, where the group alone would call 4 as bad as 1 was before."""
    rewards = PromptRewards(16)
    rewards.add("a", [1, 2, 3])
    rewards.add("other", [100, 200])
    rewards.add("a", [4, 5, 6])
    assert rewards.advantages("a", [4, 5, 6]) == close(0.29277, 0.87831, 1.46385)
    assert rewards.advantages("other", [100, 200]) == close(-1, 1)


def test_only_the_latest_rewards_count():
    """History 4: 3, 4, 5, 6 with mean 4.5 and deviation sqrt(1.25) = 1.11803."""
    rewards = PromptRewards(4)
    rewards.add("a", [1, 2, 3])
    rewards.add("a", [4, 5, 6])
    assert rewards.advantages("a", [4, 5, 6]) == close(-0.44721, 0.44721, 1.34164)


def test_equal_rewards_have_no_advantage():
    rewards = PromptRewards(16)
    rewards.add("a", [7, 7, 7, 7])
    assert rewards.advantages("a", [7, 7, 7, 7]) == [0, 0, 0, 0]


def group(ordinal, prompt, *scores):
    made = make_trajectory_group(ordinal, trajectories=len(scores), steps=2)
    return replace(made, prompt=prompt, scores=torch.tensor([scores], dtype=torch.float32))


def test_groups_of_a_batch_are_taken_by_ordinal_and_every_step_carries_its_trajectory_s(tmp_path):
    """Whatever the order in which a rank holds them. The same prompt twice in a batch: both see all six rewards."""
    single_process_group(tmp_path)
    rewards = PromptRewards(16)
    later, first = rewards.normalise([group(5, "a", 4.0, 5.0, 6.0), group(2, "a", 1.0, 2.0, 3.0)])
    assert later.advantage.tolist() == close(0.29277, 0.29277, 0.87831, 0.87831, 1.46385, 1.46385)
    assert first.advantage.tolist() == close(-1.46385, -1.46385, -0.87831, -0.87831, -0.29277, -0.29277)
    short = PromptRewards(3)
    short.normalise([group(5, "a", 4.0, 5.0, 6.0), group(2, "a", 1.0, 2.0, 3.0)])
    assert short.advantages("a", [5]) == close(0), "what is left are the rewards of the later ordinal"


def test_the_state_comes_back():
    rewards, again, empty = PromptRewards(4), PromptRewards(4), PromptRewards(4)
    rewards.add("赤い円", [1, 2, 3])
    rewards.add("b", [0.1] * 7)
    again.load_state_dict(rewards.state_dict())
    empty.load_state_dict(PromptRewards(4).state_dict())
    assert again.state_dict() == rewards.state_dict() and empty.state_dict() == PromptRewards(4).state_dict()
    for each in (rewards, again):
        each.add("赤い円", [4, 5, 6])
    assert again.advantages("赤い円", [4, 5, 6]) == rewards.advantages("赤い円", [4, 5, 6])
