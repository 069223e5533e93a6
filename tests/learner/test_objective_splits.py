"""Every objective gives the same weights however a batch is cut: in micro-batches, padded, and on two ranks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from learner.batching import split_updates
from learner.engine import build_engine, gather_trained
from learner.update import Updater
from rollout.decoder import load_decoder
from rollout.policy import load_policy
from rollout.prompts import PromptItem
from rollout.samplers import build_sampler
from tests.fakes import RedScorer
from tests.learner.inprocess import single_process_group, small_config
from tests.learner.ranks import run_ranks, sampled_group, train_on
from tests.tiny import make_final_group, tiny_pipeline

CPU = torch.device("cpu")
LR = 1e-3
FINAL, WALKS = {"type": "final_pairs"}, {"type": "trajectory", "num_trajectories": 3}
STEPS = {"type": "stepwise", "num_candidates": 2, "threshold": 0.0}
CASES = {
    "spo": ({"type": "spo"}, STEPS),
    "pixel-spo": ({"type": "spo", "pixel": {"weight": 0.5}}, STEPS),
    "d3po": ({"type": "d3po"}, WALKS),
    "ddpo": ({"type": "ddpo"}, WALKS),
    "pixel-simpo": ({"type": "simpo", "reduction": "mean", "beta": 100.0, "pixel": {"weight": 2.0}}, FINAL),
    "dpo": ({"type": "dpo", "beta": 100.0}, FINAL),  # 5000 multiplies the rounding of the errors
    "pixel-dpo": ({"type": "dpo", "beta": 100.0, "pixel": {"weight": 2.0, "decode": "x0"}}, FINAL),
    "mapo": ({"type": "mapo"}, FINAL),
    "pixel-sft": ({"type": "sft", "reduction": "mean", "pixel": {"weight": 2.0}}, FINAL),
}
PAIRS = [[2, 0, 1, 1], [1, 1, 0, 0]]
"""Pairs of the 4 groups of each batch. Rank 1 of 2 has none in batch 1."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    single_process_group(folder)
    return tiny_pipeline(folder / "pipeline")


def config_of(name, pipeline, folder, ranks=1, micro_batch_pairs=3):
    objective, sampler = CASES[name]
    learner = {"groups_per_batch": 4, "updates_per_batch": 1, "max_batches": 2, "optimizer": {"lr": LR}}
    more = {"ranks": ranks, "micro_batch_pairs": micro_batch_pairs}
    return small_config(pipeline, folder, objective=objective, sampler=sampler, **learner, **more)


def batches_of(name, pipeline):
    """Two batches of four groups; trajectories are of two prompts that come in both, the others of random numbers."""
    config = config_of(name, pipeline, pipeline.parent)
    policy = load_policy(config.model, config.noise, "cpu", seed=0)
    ordinals = iter(range(100))
    if name == "ddpo":
        sampler = build_sampler(config, policy, "cpu", scorer_from=lambda *_: RedScorer())
        items = [[PromptItem(next(ordinals), text, n) for n, text in enumerate("abba")] for _ in PAIRS]
        return [sampler.sample(batch, policy_step=0, adapter_sha256="0" * 64, worker="test") for batch in items]
    if CASES[name][1] is FINAL:
        return [[make_final_group(next(ordinals), pairs=n) for n in batch] for batch in PAIRS]
    shared = CASES[name][1] is STEPS
    return [[sampled_group(policy, next(ordinals), n, shared=shared) for n in batch] for batch in PAIRS]


def one_update(config, groups, padding):
    """Mean loss, gradient norm and weights after one update, with so many forward passes of padding."""
    policy = load_policy(config.model, config.noise, "cpu", seed=0, network_only=True)
    engine = build_engine(policy, config.learner)
    decoder = load_decoder(config.model, CPU) if "pixel" in config.learner.objective.model_fields_set else None
    updater = Updater(policy, engine, config.learner, 1, seed=0, decoder=decoder)
    (plan,) = updater.plan(split_updates(groups, 0, 1))
    result = updater.run(groups, replace(plan, micro_batches=plan.micro_batches + padding), LR, step=0)
    assert not result.skipped and result.grad_norm > 0
    weights = gather_trained(engine, policy)
    root_mean_square = min(result.grad_norm, 1.0) / math.sqrt(sum(tensor.numel() for tensor in weights.values()))
    assert result.grad_rms_over_eps == pytest.approx(root_mean_square / 1e-8)
    return result, weights


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_and_padding_change_nothing(pipeline, name):
    groups = batches_of(name, pipeline)[0]
    whole, weights = one_update(config_of(name, pipeline, pipeline.parent, micro_batch_pairs=64), groups, 0)
    parts, found = one_update(config_of(name, pipeline, pipeline.parent, micro_batch_pairs=1), groups, 2)
    assert parts.means["loss"] == pytest.approx(whole.means["loss"], rel=1e-4, abs=1e-5)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-3)
    assert_same_weights(found, weights)


def assert_same_weights(found, wanted):
    """AdamW turns the rounding of a gradient near zero into a part of its step: of single elements, not of many."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        differences = (found[name] - tensor).abs()
        assert differences.mean() < 0.01 * LR and differences.max() < 0.5 * LR, name


def trained(rank, world, pipeline, folder, batches):
    """Published adapters and reported lines of each case."""
    return {
        name: train_on(rank, world, config_of(name, pipeline, folder / name, world, 3 // world), batches[name])
        for name in CASES
    }


@pytest.mark.timeout(900)
def test_two_ranks_with_smaller_micro_batches_give_the_weights_of_one(pipeline, tmp_path):
    batches = {name: [[g.to_bytes() for g in batch] for batch in batches_of(name, pipeline)] for name in CASES}
    wanted = trained(0, 1, pipeline, tmp_path / "one", batches)
    found, _ = run_ranks(2, tmp_path, trained, pipeline, tmp_path / "two", batches)
    for name in CASES:
        (adapters, lines), (wanted_adapters, wanted_lines) = found[name], wanted[name]
        for step, line in wanted_lines.items():
            assert lines[step]["loss/total"] == pytest.approx(line["loss/total"], rel=1e-3, abs=1e-3), name
            assert lines[step]["loss/grad_norm"] == pytest.approx(line["loss/grad_norm"], rel=1e-2), name
        for left, right in zip(adapters, wanted_adapters, strict=True):
            assert_same_weights(left, right)
