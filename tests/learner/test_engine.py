"""DeepSpeed on one and on two real ranks: every ZeRO stage gives one rank's weights, and the learning rate's shape."""

from __future__ import annotations

import pytest
import torch

import learner.engine
from configs.learner import OptimizerSection
from configs.model import LoraSection
from learner.committed import list_committed
from learner.engine import (
    accumulate,
    apply_update,
    build_engine,
    deepspeed_config,
    gather_trained,
    learning_rate,
    wrap_module,
)
from rollout.policy import load_policy
from tests.learner.inprocess import single_process_group, small_config
from tests.learner.ranks import run_ranks, sampled_group, train_on
from tests.tiny import tiny_pipeline

PAIRS = [[3, 0, 2, 5], [4, 1, 0, 0], [0, 0, 1, 0], [2, 2, 6, 1]]
"""Pairs of the 4 groups of each batch. Rank 1 of 2 has none in batch 1, rank 0 none in batch 2."""
LR = 1e-3
TOLERANCE = 0.02 * LR
"""Ranks sum gradients in another order than one rank; AdamW turns the rounding of a gradient near zero into a part of
its step. 2 % of one step's largest change, after 8 steps."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    single_process_group(folder)
    return tiny_pipeline(folder / "pipeline")


FULL_OPTIMIZER = {"lr": LR, "eps": 1e-5}
"""A whole network has weights whose gradient is nothing but rounding; AdamW's own 1e-8 would make full steps of it."""


def config_for(pipeline, run_dir, ranks, zero_stage, **more):
    learner = {"groups_per_batch": 4, "micro_batch_pairs": 2, "ranks": ranks, "optimizer": {"lr": LR}, **more}
    return small_config(pipeline, run_dir, engine={"zero_stage": zero_stage}, **learner)


def full_config(pipeline, run_dir, ranks, zero_stage):
    """The whole network is trained, and the reference evaluated beside it."""
    more = {"model": {"trainable": "full"}, "optimizer": FULL_OPTIMIZER, "reference_at": "learner"}
    return config_for(pipeline, run_dir, ranks, zero_stage, **more)


def make_batches(pipeline, shared=True):
    config = small_config(pipeline, pipeline.parent)
    policy = load_policy(config.model, config.noise, "cpu", seed=0, network_only=True)
    ordinals = iter(range(100))
    return [
        [sampled_group(policy, next(ordinals), pairs, shared=shared).to_bytes() for pairs in batch] for batch in PAIRS
    ]


def stages_on_ranks(rank, world, pipeline, folder, batches):
    """ZeRO 0 to 3, one after the other, on the same ranks; ZeRO-3 partitions every parameter. Last: resumed ZeRO-3."""
    learner.engine.PERSISTENT_ELEMENTS = 0
    results = {}
    for stage in (0, 1, 2, 3):
        config = config_for(pipeline, folder / f"stage-{stage}", world, stage)
        results[stage] = train_on(rank, world, config, batches)
    config = config_for(pipeline, folder / "resumed", world, 3)
    results["resumed"] = train_on(rank, world, config, batches, list_committed(folder / "stage-3")[0])
    for stage in (1, 2, 3):
        config = full_config(pipeline, folder / f"full-{stage}", world, stage)
        results["full", stage] = train_on(rank, world, config, batches)
    config = full_config(pipeline, folder / "full-resumed", world, 3)
    results["full resumed"] = train_on(rank, world, config, batches, list_committed(folder / "full-3")[0])
    return results


@pytest.fixture(scope="module")
def one_rank(pipeline):
    return train_on(0, 1, config_for(pipeline, pipeline.parent / "one", 1, 1), make_batches(pipeline))


@pytest.fixture(scope="module")
def one_rank_full(pipeline):
    return train_on(0, 1, full_config(pipeline, pipeline.parent / "one-full", 1, 1), make_batches(pipeline))


@pytest.fixture(scope="module")
def two_ranks(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(2, folder, stages_on_ranks, pipeline, folder, make_batches(pipeline))


@pytest.mark.timeout(900)  # the first one waits for two_ranks, the two processes of five runs
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_give_the_weights_of_one(one_rank, two_ranks, stage):
    assert_same_run(one_rank, two_ranks[0][stage])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_train_a_whole_network_as_one_does(pipeline, one_rank_full, two_ranks, stage):
    assert_same_run(one_rank_full, two_ranks[0]["full", stage])
    config = full_config(pipeline, pipeline.parent, 1, 1)
    network = load_policy(config.model, config.noise, "cpu", seed=0, network_only=True).network
    assert two_ranks[0]["full", stage][0][0].keys() == dict(network.named_parameters()).keys(), "all of them"


def assert_same_run(one, two):
    (wanted, wanted_lines), (found, lines) = one, two
    assert len(found) == len(wanted) == 5
    for step, (left, right) in enumerate(zip(found, wanted, strict=True)):
        assert left.keys() == right.keys()
        for name in right:
            assert left[name].shape == right[name].shape, "complete"
            assert torch.allclose(left[name], right[name], rtol=0, atol=TOLERANCE), (step, name)
    moved = max(float((wanted[-1][name] - wanted[0][name]).abs().max()) for name in wanted[0])
    assert moved > 3 * LR, "eight steps changed the weights by far more than the tolerance"
    assert sorted(lines) == sorted(wanted_lines)
    for step, line in wanted_lines.items():
        for tag in ("loss/total", "loss/grad_norm", "pairs/trained", "ratio/win_mean", "pairs/per_group"):
            assert lines[step].get(tag) == pytest.approx(line.get(tag), abs=1e-4), (step, tag)
        if (seen := line.get("loss/grad_rms_over_eps")) is not None:  # else an update without pairs
            assert lines[step]["loss/grad_rms_over_eps"] == pytest.approx(seen, rel=1e-2), "of whole tensors"


@pytest.mark.parametrize(("kind", "whole"), [("resumed", 3), ("full resumed", ("full", 3))])
def test_zero_3_resumes_on_two_ranks(two_ranks, kind, whole):
    whole, resumed = two_ranks[0][whole][0], two_ranks[0][kind][0]
    assert len(resumed) == 3, "published on resuming after batch 2, then after batches 3 and 4"
    for left, right in zip(resumed, whole[2:], strict=True):
        assert all(torch.equal(left[name], right[name]) for name in right)


def test_only_rank_0_publishes_and_reports(two_ranks):
    assert two_ranks[1][2] == ([], {})


def test_branches_with_their_own_states_train_as_well(pipeline, tmp_path):
    adapters, lines = train_on(0, 1, config_for(pipeline, tmp_path, 1, 2), make_batches(pipeline, shared=False))
    assert lines[1]["ratio/win_mean"] == pytest.approx(1, abs=1e-6)
    assert lines[1]["loss/total"] == pytest.approx(0.693147, abs=1e-5)
    assert len(adapters) == 5


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_micro_batches_add_up_and_the_norm_is_clipped(pipeline, stage):
    """One update over three micro-batches equals plain torch on their sum, which fixes every factor in between."""
    config = config_for(pipeline, pipeline.parent, 1, stage, optimizer={"lr": LR, "max_grad_norm": 1e-3})

    def fresh():
        return load_policy(config.model, config.noise, "cpu", seed=0, network_only=True)

    def loss(policy, network, part):
        x = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8) * part
        cond = {"encoder_hidden_states": torch.ones(1, 16, 32), "return_dict": False}
        return network(x, torch.tensor([501]), **cond)[0].pow(2).mean()

    plain = fresh()
    parameters = [parameter for _, parameter in plain.trainable_parameters()]
    sum(loss(plain, plain.network, part) for part in (1, 2, 3)).backward()
    wanted_norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1e-3))
    torch.optim.AdamW(parameters, lr=LR, weight_decay=1e-4).step()

    policy = fresh()
    engine = build_engine(policy, config.learner)
    for part in (1, 2, 3):
        accumulate(engine, loss(policy, engine, part), last=part == 3)
    assert apply_update(engine, LR) == pytest.approx(wanted_norm, rel=1e-5)
    adapter = gather_trained(engine, policy)
    for name, parameter in plain.trainable_parameters():
        assert torch.allclose(adapter[name], parameter, rtol=0, atol=TOLERANCE), name


def test_only_the_adapter_is_optimised(pipeline):
    config = config_for(pipeline, pipeline.parent, 1, 2)
    policy = load_policy(config.model, config.noise, "cpu", seed=0, network_only=True)
    engine = build_engine(policy, config.learner)
    trained = sum(p.numel() for group in engine.optimizer.bit16_groups for p in group)
    assert trained == sum(p.numel() for _, p in policy.trainable_parameters())
    assert not any(p.requires_grad for name, p in policy.network.named_parameters() if ".lora_" not in name)


@pytest.mark.parametrize("stage", [0, 2])
def test_frozen_convolutions_are_channels_last_and_trained_ones_contiguous(pipeline, stage):
    config = config_for(pipeline, pipeline.parent, 1, stage)
    convolutions = config.model.model_copy(update={"lora": LoraSection(rank=2, target_modules=["conv1", "conv2"])})
    policy = load_policy(convolutions, config.noise, "cpu", seed=0)

    def layouts(module, trained):
        found = [p for p in module.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1 and p.requires_grad == trained]
        assert found
        return {p.is_contiguous(memory_format=torch.channels_last) for p in found}

    assert layouts(policy.network, False) == {True} and layouts(policy._require_vae(), False) == {True}
    build_engine(policy, config.learner)
    assert layouts(policy.network, False) == {True} and layouts(policy.network, True) == {False}


def test_offload_keeps_buffers_for_accumulation(pipeline):
    settings = config_for(pipeline, pipeline.parent, 1, 3).learner
    offloaded = settings.model_copy(update={"engine": settings.engine.model_copy(update={"offload": "cpu"})})
    found = deepspeed_config(offloaded, trained=1000)
    assert found["gradient_accumulation_steps"] == 2 and not found["optimizer"]["params"]["torch_adam"]
    assert found["zero_optimization"]["offload_param"] == {"device": "cpu"}
    assert found["zero_optimization"]["reduce_bucket_size"] == 1000, "no larger than what it can ever hold"


def rates(total, **settings):
    section = OptimizerSection(lr=1.0, **settings)
    return [round(learning_rate(section, step, total), 6) for step in range(total)]


def test_learning_rates():
    assert rates(3) == [1, 1, 1]
    assert rates(5, warmup_steps=2) == [0.5, 1, 1, 1, 1]
    assert rates(5, decay="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert rates(5, decay="linear", final_lr_ratio=0.2) == [1, 0.8, 0.6, 0.4, 0.2]
    assert rates(5, decay="cosine", warmup_steps=2) == [0.5, 1, 1, 0.5, 0]
    assert rates(1, decay="cosine") == [1]


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_callers_autocast_reaches_the_module(pipeline, tmp_path, monkeypatch, zero_stage):
    """DeepSpeed asks whether an autocast is on for CUDA, and switches it off. Here the question is about the CPU."""
    asked = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": asked(kind))
    module, x = torch.nn.Linear(4, 3), torch.ones(2, 4)
    settings = config_for(pipeline, tmp_path, 1, zero_stage).learner
    engine = wrap_module(module, list(module.parameters()), settings, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        inside = engine(x)
        assert module(x).dtype == torch.bfloat16
    assert inside.dtype == torch.bfloat16
    assert engine(x).dtype == module(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert engine(x).dtype == torch.float32
    accumulate(engine, inside.float().sum(), last=True)
    assert apply_update(engine, 1e-3) > 0 and module.weight.dtype == torch.float32
