"""The loop on the real queue, mailbox, sampler and engine, in one process and without Ray."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from learner.committed import CheckpointError, find_checkpoint, list_committed
from learner.loop import train
from rollout.policy import load_policy
from tests.learner.compare import assert_checkpoints_equal
from tests.learner.inprocess import Mailbox, Rollout, Telemetry, single_process_group, small_config
from tests.learner.ranks import sampled_group, train_on
from tests.tiny import tiny_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    single_process_group(folder)
    return tiny_pipeline(folder / "pipeline")


class Run:
    """Config, rollout, mailbox and telemetry of one run directory; `again` is a new process after a crash."""

    def __init__(self, config, telemetry=None):
        self.config = config
        self.telemetry = telemetry or Telemetry()
        self.mailbox = Mailbox(config.run.path / "adapters")
        self.rollout = Rollout(config, self.mailbox)

    def train(self, **more):
        return train(0, 1, self.config, self.rollout, self.mailbox, self.telemetry, device=CPU, **more)

    def again(self):
        return Run(self.config, self.telemetry)

    def adapter_sha256(self):
        return self.mailbox.actor.version.sha256


def loss_lines(telemetry):
    kept = ("loss/", "ratio/", "pairs/", "reward/")
    return {step: {k: v for k, v in line.items() if k.startswith(kept)} for step, line in telemetry.lines.items()}


def test_a_run_trains_publishes_reports_and_checkpoints(pipeline, tmp_path):
    run = Run(small_config(pipeline, tmp_path))
    evaluated = []
    config = run.config.model_copy(update={"evaluation": run.config.evaluation.model_copy(update={"every_batches": 2})})
    run.config = config
    result = run.train(evaluate=lambda version, state: evaluated.append(version))
    assert result.finished and result.counters.batch == 4 and result.counters.step == 8

    versions = [(version.step, version.batch) for version in run.mailbox.published]
    assert versions == [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4)], "before the first take, then after every batch"
    assert len({version.sha256 for version in run.mailbox.published}) == 5, "every batch changed the weights"
    assert [version.batch for version in evaluated] == [2]

    lines = run.telemetry.lines
    assert sorted(lines) == list(range(1, 9))
    assert lines[1]["loss/total"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[1]["ratio/win_mean"] == pytest.approx(1, abs=1e-6)
    assert lines[8]["throughput/batches"] == 4 and lines[8]["queue/trained"] == 8
    assert lines[2]["pairs/per_group"] * 2 == lines[1]["pairs/trained"] + lines[2]["pairs/trained"]
    assert lines[2]["pairs/kept_share"] == lines[2]["pairs/per_group"] / 5
    gathered = {"reward/final_mean", "reward/step_mean", "weights/staleness_steps", "memory/learner_bytes"}
    assert gathered <= lines[2].keys()
    assert [path.name for path in list_committed(tmp_path)] == ["batch-00000002", "batch-00000004"]

    stats = run.rollout.stats()
    assert stats["produced"] == stats["trained"] == 8 and stats["queued"] == 0


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_n_batches_kill_resume_n_equals_2n(pipeline, tmp_path, zero_stage):
    engine = {"engine": {"zero_stage": zero_stage}}
    whole = Run(small_config(pipeline, tmp_path / "whole", **engine))
    whole.train()

    class Killed(BaseException):
        pass

    def kill(batch):
        if batch == 3:
            raise Killed

    first = Run(small_config(pipeline, tmp_path / "parts", **engine))
    first.rollout.before_take = kill
    with pytest.raises(Killed):
        first.train()
    torch.manual_seed(12345)  # a new process's generators are somewhere else
    second = first.again()
    result = second.train(resume_from=find_checkpoint("auto", tmp_path / "parts"))
    assert result.finished and second.mailbox.published[0].batch == 2 and second.mailbox.published[0].attempt == 1

    assert second.adapter_sha256() == whole.adapter_sha256()
    assert loss_lines(second.telemetry) == loss_lines(whole.telemetry)
    assert_checkpoints_equal(list_committed(tmp_path / "parts")[-1], list_committed(tmp_path / "whole")[-1])


def test_a_closed_queue_ends_the_run_with_a_checkpoint(pipeline, tmp_path):
    run = Run(small_config(pipeline, tmp_path))
    run.rollout.before_take = lambda batch: run.rollout.close("interrupted") if batch == 1 else None
    result = run.train()
    assert not result.finished and result.counters.batch == 1
    assert list_committed(tmp_path)[-1].name == "batch-00000001"
    resumed = run.again()
    assert resumed.train(resume_from=find_checkpoint("auto", tmp_path)).finished

    whole = Run(small_config(pipeline, tmp_path / "whole"))
    whole.train()
    assert resumed.adapter_sha256() == whole.adapter_sha256()


def test_updates_without_pairs_are_counted_and_change_nothing(pipeline, tmp_path):
    config = small_config(pipeline, tmp_path, max_batches=1)
    sampler = config.rollout.sampler.model_copy(update={"threshold": 0.999999})
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"sampler": sampler})})
    run = Run(config)
    assert run.train().counters.step == 2
    assert run.telemetry.lines[2]["pairs/trained"] == 0 and "loss/total" not in run.telemetry.lines[1]
    assert len({version.sha256 for version in run.mailbox.published}) == 1


def spoil(ordinal):
    """A tamper that makes one group's reference means so large that the loss is not a number."""

    def tamper(group):
        if group.ordinal != ordinal:
            return group
        return replace(group, ref_mean_win=group.ref_mean_win * 1e30, x_prev_win=group.x_prev_win * 1e30)

    return tamper


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_non_finite_update_is_skipped_counted_and_named(pipeline, tmp_path, zero_stage, caplog):
    run = Run(small_config(pipeline, tmp_path, updates_per_batch=1, engine={"zero_stage": zero_stage}))
    run.rollout.tamper = spoil(2)
    result = run.train()
    assert result.finished and result.counters.skipped_updates == 1
    shas = [version.sha256 for version in run.mailbox.published]
    assert shas[1] == shas[2] and len(set(shas)) == 4, "only the second update was skipped"
    assert run.telemetry.lines[2]["pairs/skipped_updates"] == 1
    assert "step 2: non-finite loss" in caplog.text and "(seed " in caplog.text


def test_a_run_stops_at_too_many_non_finite_updates(pipeline, tmp_path):
    run = Run(small_config(pipeline, tmp_path, updates_per_batch=1, max_nonfinite_batches=1))
    run.rollout.tamper = spoil(1)
    with pytest.raises(FloatingPointError, match=r"step 1: .*max_nonfinite_batches is 1"):
        run.train()


def test_the_reference_may_be_evaluated_by_either_side(pipeline, tmp_path):
    by_worker = Run(small_config(pipeline, tmp_path / "worker"))
    by_worker.train()
    by_learner = Run(small_config(pipeline, tmp_path / "learner", reference_at="learner"))
    by_learner.train()
    assert by_learner.telemetry.lines[1]["loss/total"] == pytest.approx(math.log(2), abs=1e-7), "one network, one batch"
    for step, line in by_worker.telemetry.lines.items():
        assert by_learner.telemetry.lines[step]["loss/total"] == pytest.approx(line["loss/total"], abs=1e-5)


def test_another_run_s_checkpoint_is_refused_by_field(pipeline, tmp_path):
    run = Run(small_config(pipeline, tmp_path, max_batches=1))
    run.train()
    other = Run(small_config(pipeline, tmp_path / "other", groups_per_batch=4))
    with pytest.raises(CheckpointError, match=r"learner\.groups_per_batch is 2 in the checkpoint and 4 in this run"):
        other.train(resume_from=find_checkpoint(str(tmp_path), tmp_path / "other"))


def test_training_moves_towards_the_winners(pipeline, tmp_path):
    """The same pairs again and again: the policy comes to prefer every winner, and the loss falls."""
    config = small_config(pipeline, tmp_path, updates_per_batch=1, max_batches=12, micro_batch_pairs=8)
    policy = load_policy(config.model, config.noise, "cpu", seed=0, network_only=True)
    same = [sampled_group(policy, ordinal, 3).to_bytes() for ordinal in (0, 1)]
    _, lines = train_on(0, 1, config, [same] * 12)
    losses = [lines[step]["loss/total"] for step in range(1, 13)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < losses[0] - 0.05
    assert lines[12]["pairs/accuracy"] == 1
    assert lines[12]["ratio/win_mean"] > lines[12]["ratio/lose_mean"]
