"""The step-wise sampler over a real small pipeline: plan, pairs, reuse of evaluations, parity with the learner."""

import pytest
import torch

from configs.model import ModelSection, NoiseSection
from configs.rollout import SigmaThreshold
from configs.rollout import StepwiseSampler as Settings
from rollout.conditioning import Conditioning
from rollout.policy import load_policy
from rollout.prompts import PromptItem
from rollout.stepwise import StepwiseSampler, plan_blocks
from rollout.transition import transition
from tests.fakes import RedScorer
from tests.parity import learner_log_probs
from tests.tiny import tiny_pipeline

ITEMS = [PromptItem(0, "a", 100), PromptItem(1, "bb", 101), PromptItem(2, "ccc", 102)]
STAMP = {"policy_step": 5, "adapter_sha256": "f" * 64, "worker": "worker-3"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline"))
    policy = load_policy(ModelSection(pretrained=str(folder)), NoiseSection(), "cpu", seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def run(policy, items=ITEMS, scorer=None, **settings):
    sampler = StepwiseSampler(policy, scorer or RedScorer(), Settings(**settings))
    return sampler.sample(items, **STAMP), sampler


def test_plan_of_the_paper(policy):
    plain, blocks = plan_blocks(policy.schedule, 750, 0, 1)
    assert plain == [951, 901, 851, 801]
    assert blocks == [[t] for t in range(751, 0, -50)]


def test_plan_with_blocks_and_a_shorter_last_one(policy):
    _, blocks = plan_blocks(policy.schedule, 750, 0, 3)
    assert blocks[0] == [751, 701, 651] and blocks[-1] == [1] and sum(map(len, blocks)) == 16
    assert plan_blocks(policy.schedule, 1000, 0, 4)[0] == []
    assert plan_blocks(policy.schedule, 750, 250, 1)[1][-1] == [301]


def test_groups_carry_their_rollout(policy):
    groups, _ = run(policy, threshold=0.0)
    assert [group.ordinal for group in groups] == [0, 1, 2]
    for group, item in zip(groups, ITEMS, strict=True):
        assert (group.prompt, group.seed, group.policy_step, group.worker) == (item.prompt, item.seed, 5, "worker-3")
        assert group.timestep.tolist() == list(range(751, 0, -50))
        assert group.score_timesteps.tolist() == [*range(701, 0, -50), 0]
        assert group.scores.shape == (16, 4) and group.x_t_lose is None and group.ref_mean_lose is None
        assert torch.equal(group.score_win, group.scores.max(1).values)
        assert torch.equal(group.score_lose, group.scores.min(1).values)
        assert group.final_score == pytest.approx(float(group.scores[-1].mean()))


def test_one_network_evaluation_per_candidate_and_step(policy):
    """Three prompts: 4 plain steps, the first pool's shared evaluation, 15 pools of 4 scored through the network (the
    16th is scored as finished pictures), and the reference once a pair: nothing is evaluated twice."""
    scorer = RedScorer()
    _, sampler = run(policy, scorer=scorer, threshold=0.0)
    assert sampler.counters.network_evaluations == 3 * (4 + 1 + 15 * 4 + 16)
    assert sampler.counters.scored_candidates == len(scorer.timesteps_seen) == 3 * 16 * 4
    assert sorted(set(scorer.timesteps_seen)) == [0, *range(1, 702, 50)]


def test_pairs_chain_where_the_winner_continues(policy):
    groups, _ = run(policy, threshold=0.0, continuation="win")
    for group in groups:
        assert torch.equal(group.x_t[1:], group.x_prev_win[:-1])
    groups, _ = run(policy, threshold=0.0, continuation="lose")
    assert torch.equal(groups[0].x_t[1:], groups[0].x_prev_lose[:-1])


def test_random_continuation_is_uniform_over_candidates_and_seeded(policy):
    first, second = (run(policy, threshold=0.0)[0] for _ in range(2))
    assert all(torch.equal(a.x_t, b.x_t) for a, b in zip(first, second, strict=True))
    came_from_win = [bool((g.x_t[1:][n] == g.x_prev_win[:-1][n]).all()) for g in first for n in range(15)]
    assert 0 < sum(came_from_win) < len(came_from_win)


def test_a_group_depends_on_its_own_prompt_and_seed_alone(policy):
    together, _ = run(policy, threshold=0.0)
    alone, _ = run(policy, items=ITEMS[1:2], threshold=0.0)
    torch.testing.assert_close(together[1].x_prev_win, alone[0].x_prev_win, rtol=1e-3, atol=1e-3)
    assert together[1].timestep.tolist() == alone[0].timestep.tolist()


def test_threshold_drops_pairs_that_are_not_told_apart(policy):
    all_pairs, _ = run(policy, threshold=0.0)
    some, _ = run(policy, threshold=0.5)
    none, _ = run(policy, threshold=0.999999)
    for full, part, empty in zip(all_pairs, some, none, strict=True):
        margin = torch.stack([full.score_win, full.score_lose]).softmax(0)
        expected = full.timestep[(margin[0] - margin[1]) > 0.5].tolist()
        assert part.timestep.tolist() == expected and empty.num_pairs <= len(expected)
    assert sum(g.num_pairs for g in some) < sum(g.num_pairs for g in all_pairs)


def test_threshold_may_rise_with_sigma(policy):
    sampler = StepwiseSampler(policy, RedScorer(), Settings(threshold=SigmaThreshold(low=0.35, high=0.5)))
    thresholds = [sampler._threshold(step) for step in policy.schedule.timesteps.tolist()]
    sigmas = policy.schedule.sigma(policy.schedule.timesteps)
    assert max(thresholds) == pytest.approx(0.5) and min(thresholds) == pytest.approx(0.35)
    assert thresholds[int(sigmas.argmax())] == pytest.approx(0.5)


def test_random_pairs_are_distinct_and_ordered(policy):
    groups, _ = run(policy, threshold=0.0, pair_rule="random")
    assert any(g.score_win[n] < g.scores[n].max() for g in groups for n in range(g.num_pairs))
    assert all(bool((g.score_win > g.score_lose).all()) for g in groups)


@pytest.mark.parametrize("block_length", [1, 4])
def test_sampler_and_learner_agree_on_log_probabilities(policy, block_length):
    """The learner's own code, on the group as it travels: equal to 1e-6 in float32."""
    for group in run(policy, threshold=0.0, block_length=block_length)[0]:
        win, lose = learner_log_probs(policy, group)
        torch.testing.assert_close(win, group.behaviour_logp_win, rtol=0, atol=1e-6)
        torch.testing.assert_close(lose, group.behaviour_logp_lose, rtol=0, atol=1e-6)


@pytest.mark.parametrize("block_length", [1, 4])
def test_the_workers_reference_mean_is_the_bases(policy, block_length):
    group = run(policy, threshold=0.0, block_length=block_length)[0][0]
    conditioning = Conditioning.from_rows([group.conditioning] * group.num_pairs)
    with torch.no_grad(), policy.reference():
        output = policy.predict(group.x_t, group.timestep, conditioning)
    expected = transition(policy.schedule, output, group.x_t, group.timestep).mean
    torch.testing.assert_close(group.ref_mean_win, expected, rtol=1e-5, atol=1e-5)


def test_blocks_give_n_pairs_that_walk_alone(policy):
    groups, sampler = run(policy, threshold=0.0, block_length=4)
    assert sampler.counters.network_evaluations == 3 * (4 + 1 + 15 * 4 + 2 * 16)
    for group in groups:
        assert group.num_pairs == 16 and group.scores.shape == (4, 4)
        for start in range(0, 16, 4):
            assert torch.equal(group.x_t[start], group.x_t_lose[start]), "a block leaves one shared state"
            inner = slice(start + 1, start + 4)
            assert torch.equal(group.x_t[inner], group.x_prev_win[start : start + 3])
            assert torch.equal(group.x_t_lose[inner], group.x_prev_lose[start : start + 3])
            assert len(set(group.score_win[start : start + 4].tolist())) == 1


def test_a_scorer_of_latents_needs_no_candidate_evaluations(policy):
    """A scorer that reads the noisy latent: only the candidate that continues goes through the network."""

    class LatentScorer(RedScorer):
        reads = "latent"

    groups, sampler = run(policy, scorer=LatentScorer(), threshold=0.0)
    assert sampler.counters.network_evaluations == 3 * (4 + 16 + 16)
    assert groups[0].num_pairs == 16


def test_without_reference_the_learner_evaluates_it(policy):
    sampler = StepwiseSampler(policy, RedScorer(), Settings(threshold=0.0), reference=False)
    assert sampler.sample(ITEMS[:1], **STAMP)[0].ref_mean_win is None


def test_a_non_finite_score_is_loud(policy):
    with pytest.raises(FloatingPointError, match=r"red-1 gave a non-finite score at t = 701: 'a'"):
        run(policy, scorer=RedScorer(scale=float("nan")))


def test_every_group_can_travel(policy):
    for group in run(policy, threshold=0.4, block_length=3)[0]:
        assert type(group).from_bytes(group.to_bytes()).header() == group.header()
