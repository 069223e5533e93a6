"""Training the whole network (`model.trainable: full`) through the loop: start, reference, resume, precision."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch

from learner.checkpoint import SMALL_FILES, save_checkpoint, shard_bytes
from learner.committed import CheckpointError, Counters, find_checkpoint, list_committed
from learner.engine import accumulate, apply_update, build_engine
from learner.loop import train
from rollout.adapter import deserialise_adapter
from rollout.policy import load_policy
from tests.learner.compare import assert_checkpoints_equal
from tests.learner.inprocess import Mailbox, Rollout, Telemetry, single_process_group, small_config
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    single_process_group(folder)
    return tiny_pipeline(folder / "pipeline")


def full_config(pipeline, run_dir, dtype="float32", **learner):
    model = {"trainable": "full", "dtype": dtype}
    return small_config(pipeline, run_dir, model=model, optimizer={"lr": 1e-4}, **learner)


def run(config, *, resume=False, stop_before=None):
    """Telemetry and mailbox of one run, or of the part of it before batch `stop_before`."""
    mailbox, telemetry = Mailbox(config.run.path / "adapters"), Telemetry()
    rollout = Rollout(config, mailbox)

    def close(batch):
        if batch == stop_before:
            rollout.close("interrupted")

    rollout.before_take = close
    start = find_checkpoint("auto", config.run.path) if resume else None
    train(0, 1, config, rollout, mailbox, telemetry, device=torch.device("cpu"), resume_from=start)
    return telemetry.lines, mailbox


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    config = full_config(pipeline, tmp_path_factory.mktemp("whole"))
    return config, *run(config)


def test_every_weight_is_trained_from_a_loss_of_ln_2(pipeline, whole):
    config, lines, mailbox = whole
    assert lines[1]["loss/total"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[1]["ratio/win_mean"] == pytest.approx(1, abs=1e-6)
    assert len({version.sha256 for version in mailbox.published}) == 5, "every batch changed the weights"
    base = load_policy(config.model, config.noise, "cpu", seed=0, network_only=True, reference=False)
    _, [data] = asyncio.run(mailbox.actor.latest())
    trained = deserialise_adapter(data)
    same = [name for name, p in base.trainable_parameters() if torch.equal(trained[name], p)]
    assert trained.keys() == dict(base.network.named_parameters()).keys()
    assert not same, "no weight was left out"


def test_either_side_evaluates_the_same_reference(pipeline, whole, tmp_path):
    _, by_worker, _ = whole
    by_learner, _ = run(full_config(pipeline, tmp_path, reference_at="learner"))
    for step, line in by_worker.items():
        assert by_learner[step]["loss/total"] == pytest.approx(line["loss/total"], abs=1e-5)


def test_stopped_and_resumed_equals_whole(pipeline, whole, tmp_path):
    config, lines, mailbox = whole
    parts = full_config(pipeline, tmp_path)
    run(parts, stop_before=3)
    torch.manual_seed(12345)  # a new process's generators are somewhere else
    again, resumed = run(parts, resume=True)
    assert resumed.actor.version.sha256 == mailbox.actor.version.sha256
    assert again[8]["loss/total"] == lines[8]["loss/total"]
    assert_checkpoints_equal(list_committed(tmp_path)[-1], list_committed(config.run.path)[-1])

    adapter = small_config(pipeline, tmp_path, optimizer={"lr": 1e-4})
    with pytest.raises(CheckpointError, match=r"model\.trainable is full in the checkpoint and lora in this run"):
        run(adapter, resume=True)


def test_bfloat16_computes_alike_in_sampler_learner_and_reference(pipeline, tmp_path):
    """Weights stay float32; both sides compute under the same autocast, so that the first ratio is 1."""
    more = {"engine": {"zero_stage": 3}, "reference_at": "learner", "max_batches": 1}
    lines, mailbox = run(full_config(pipeline, tmp_path, "bfloat16", **more))
    assert lines[1]["ratio/win_mean"] == pytest.approx(1, abs=1e-6)
    assert lines[1]["loss/total"] == pytest.approx(math.log(2), abs=1e-6)
    assert len({version.sha256 for version in mailbox.published}) == 2


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_room_reserved_is_what_a_rank_writes(pipeline, tmp_path, zero_stage):
    config = full_config(pipeline, tmp_path, engine={"zero_stage": zero_stage})
    policy = load_policy(config.model, config.noise, "cpu", seed=0, network_only=True, reference=False)
    engine = build_engine(policy, config.learner)
    inputs = {"encoder_hidden_states": torch.ones(1, 16, 32), "return_dict": False}
    accumulate(engine, engine(torch.ones(1, 4, 8, 8), torch.tensor([501]), **inputs)[0].pow(2).mean(), last=True)
    apply_update(engine, 1e-4)
    parts = {"engine": engine, "policy": policy, "rank": 0, "queue_state": None}
    path = save_checkpoint(tmp_path, Counters(1, 1), config, **parts)
    written = sum(file.stat().st_size for file in (path / "engine").rglob("*.pt"))
    assert 0.5 * written < shard_bytes(policy, zero_stage, rank=0, ranks=1) - SMALL_FILES
    assert written < shard_bytes(policy, zero_stage, rank=0, ranks=1)
