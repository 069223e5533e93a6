"""Finished pairs and whole trajectories over a real small pipeline: who wins, what is recorded, parity."""

from __future__ import annotations

import pytest
import torch

from configs.model import ModelSection, NoiseSection
from configs.rollout import FinalPairsSampler as FinalSettings
from configs.rollout import TrajectorySampler as TrajectorySettings
from rollout.conditioning import Conditioning
from rollout.final_pairs import FinalPairsSampler, Ranking, Weighted
from rollout.policy import load_policy
from rollout.prompts import PromptItem
from rollout.sampling import picture_seed, sample_images
from rollout.trajectory import TrajectorySampler, advantages
from rollout.transition import log_prob, transition
from tests.fakes import RedScorer
from tests.tiny import tiny_pipeline

ITEMS = [PromptItem(0, "a", 100), PromptItem(1, "bb", 101)]
STAMP = {"policy_step": 5, "adapter_sha256": "f" * 64, "worker": "worker-3"}
RED = Ranking([Weighted(RedScorer(), 1.0)])


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline"))
    noise = NoiseSection(num_steps=5, guidance_scale=2.0)
    policy = load_policy(ModelSection(pretrained=str(folder)), noise, "cpu", seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def scorers(count):
    return [Weighted(RedScorer(), 1.0 + n) for n in range(count)]


def test_the_mixture_standardises_each_scorer_by_hand():
    """1, 2, 3 -> -1.2247, 0, 1.2247; 30, 10, 20 -> 1.2247, -1.2247, 0, and that twice as heavy."""
    appeal = Ranking(scorers(2)).appeal(torch.tensor([[1.0, 2.0, 3.0], [30.0, 10.0, 20.0]]))
    assert appeal.tolist() == [pytest.approx(v, abs=1e-4) for v in (1.2247, -2.4495, 1.2247)]


def test_a_scorer_that_tells_nothing_apart_adds_nothing():
    appeal = Ranking(scorers(2)).appeal(torch.tensor([[1.0, 2.0, 3.0], [7.0, 7.0, 7.0]]))
    assert appeal.tolist() == [pytest.approx(v, abs=1e-4) for v in (-1.2247, 0, 1.2247)]


@pytest.mark.parametrize(
    ("flaws", "tolerance", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], 0.0, (3, 0)),  # equally flawed: appeal decides
        ([0.0, 0.0, 0.0, -2.0], 0.0, (2, 3)),  # the most appealing one has flaws: it loses
        ([0.0, -1.0, -1.0, 0.0], 0.0, (3, 1)),
        ([0.0, 0.0, 0.0, -0.5], 0.6, (3, 0)),  # within the tolerance
    ],
)
def test_fewest_flaws_come_first(flaws, tolerance, expected):
    ranking = Ranking(scorers(1), flaws=RedScorer(), flaw_tolerance=tolerance)
    assert ranking.choose(torch.tensor([[1.0, 2.0, 3.0, 4.0], flaws])) == expected


def test_pictures_that_nothing_tells_apart_make_no_pair():
    assert RED.choose(torch.ones(1, 5)) is None
    assert Ranking(scorers(1), min_margin=3.0).choose(torch.tensor([[1.0, 2.0, 3.0]])) is None, "2.449 apart"


def test_the_best_and_the_worst_of_five_make_the_pair(policy):
    sampler = FinalPairsSampler(policy, RED, FinalSettings())
    groups = sampler.sample(ITEMS, **STAMP)
    assert sampler.counters.network_evaluations == 2 * 5 * 5 and sampler.counters.scored_candidates == 10
    for group, item in zip(groups, ITEMS, strict=True):
        assert group.num_pairs == 1 and group.scores.shape == (1, 5) and group.prompt == item.prompt
        halves = policy.decode(torch.cat([group.z_win, group.z_lose]))
        redness = 100 * halves[:, 0].mean(dim=(1, 2))
        assert redness.tolist() == [pytest.approx(float(s), abs=1e-3) for s in (group.scores.max(), group.scores.min())]
        assert group.final_score == pytest.approx(float(group.scores.mean()), abs=1e-4)
        assert type(group).from_bytes(group.to_bytes()).header() == group.header()


def test_a_group_depends_on_its_own_prompt_and_seed_alone(policy):
    sampler = FinalPairsSampler(policy, RED, FinalSettings())
    together, alone = sampler.sample(ITEMS, **STAMP)[1], sampler.sample(ITEMS[1:], **STAMP)[0]
    torch.testing.assert_close(together.z_win, alone.z_win, rtol=1e-4, atol=1e-4)
    seeds = [picture_seed(ITEMS[1].seed, n) for n in range(5)]
    images = sample_images(policy, ["bb"] * 5, seeds)
    expected = 100 * images[:, 0].mean(dim=(1, 2))
    torch.testing.assert_close(alone.scores[0], expected, rtol=1e-3, atol=1e-3)


def test_equal_scores_give_a_group_without_a_pair(policy):
    sampler = FinalPairsSampler(policy, Ranking([Weighted(RedScorer(scale=0.0), 1.0)]), FinalSettings())
    assert [group.num_pairs for group in sampler.sample(ITEMS, **STAMP)] == [0, 0]


@pytest.mark.parametrize("kind", ["final", "trajectory"])
def test_a_non_finite_score_is_loud(policy, kind):
    bad = RedScorer(scale=float("nan"))
    if kind == "final":
        sampler = FinalPairsSampler(policy, Ranking([Weighted(bad, 1.0)]), FinalSettings())
    else:
        sampler = TrajectorySampler(policy, bad, TrajectorySettings(), as_pairs=False)
    with pytest.raises(FloatingPointError, match=r"red-1 gave a non-finite score at t = 0: 'a'"):
        sampler.sample(ITEMS, **STAMP)


def test_advantages_by_hand():
    """Rewards 1, 2, 3: mean 2, population deviation 0.8165."""
    assert advantages(torch.tensor([1.0, 2.0, 3.0])).tolist() == [
        pytest.approx(v, abs=1e-4) for v in (-1.2247, 0, 1.2247)
    ]
    assert advantages(torch.full((4,), 7.0)).tolist() == [0, 0, 0, 0]


def test_rows_of_trajectories_chain_and_carry_their_advantage(policy):
    sampler = TrajectorySampler(policy, RedScorer(), TrajectorySettings(num_trajectories=3), as_pairs=False)
    group = sampler.sample(ITEMS, **STAMP)[1]
    assert group.num_pairs == 15 and group.timestep.tolist() == [801, 601, 401, 201, 1] * 3
    for start in (0, 5, 10):
        assert torch.equal(group.x_t[start + 1 : start + 5], group.x_prev[start : start + 4])
        assert len(set(group.advantage[start : start + 5].tolist())) == 1
    finished = policy.decode(group.x_prev[4::5])
    torch.testing.assert_close(100 * finished[:, 0].mean(dim=(1, 2)), group.scores[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(group.advantage[::5], advantages(group.scores[0]))
    assert type(group).from_bytes(group.to_bytes()).header() == group.header()


def test_sampler_and_learner_agree_on_log_probabilities_of_trajectories(policy):
    group = TrajectorySampler(policy, RedScorer(), TrajectorySettings(), as_pairs=False).sample(ITEMS, **STAMP)[0]
    conditioning = Conditioning.from_rows([group.conditioning] * group.num_pairs)
    with torch.no_grad():
        output = policy.predict(group.x_t, group.timestep, conditioning)
    move = transition(policy.schedule, output, group.x_t, group.timestep)
    torch.testing.assert_close(log_prob(group.x_prev, move.mean, move.std), group.behaviour_logp, rtol=0, atol=1e-5)


def test_d3po_pairs_the_best_trajectory_with_the_worst_step_by_step(policy):
    sampler = TrajectorySampler(policy, RedScorer(), TrajectorySettings(), as_pairs=True, reference=True)
    group = sampler.sample(ITEMS, **STAMP)[0]
    assert group.num_pairs == 5 and group.timestep.tolist() == [801, 601, 401, 201, 1]
    assert torch.equal(group.x_t[1:], group.x_prev_win[:-1]) and torch.equal(group.x_t_lose[1:], group.x_prev_lose[:-1])
    ends = 100 * policy.decode(torch.stack([group.x_prev_win[-1], group.x_prev_lose[-1]]))[:, 0].mean(dim=(1, 2))
    assert ends.tolist() == [pytest.approx(float(s), abs=1e-3) for s in (group.scores.max(), group.scores.min())]
    conditioning = Conditioning.from_rows([group.conditioning] * 5)
    with torch.no_grad(), policy.reference():
        output = policy.predict(group.x_t_lose, group.timestep, conditioning)
    expected = transition(policy.schedule, output, group.x_t_lose, group.timestep).mean
    torch.testing.assert_close(group.ref_mean_lose, expected, rtol=1e-5, atol=1e-5)
    assert type(group).from_bytes(group.to_bytes()).header() == group.header()


def test_equal_rewards_give_no_pair_of_trajectories(policy):
    scorer = RedScorer(scale=0.0)
    sampler = TrajectorySampler(policy, scorer, TrajectorySettings(), as_pairs=True, reference=True)
    assert [group.num_pairs for group in sampler.sample(ITEMS, **STAMP)] == [0, 0]
