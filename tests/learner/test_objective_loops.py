"""Every objective through the whole loop: its own sampler, the real queue, mailbox and engine, in one process."""

from __future__ import annotations

import math

import pytest
import torch

from learner.committed import CheckpointError, find_checkpoint
from learner.loop import train
from learner.telemetry import GROUPS
from tests.learner.inprocess import Mailbox, Rollout, Telemetry, single_process_group, small_config
from tests.tiny import tiny_pipeline

CPU = torch.device("cpu")
FINAL = {"type": "final_pairs", "num_images": 3}
WALKS = {"type": "trajectory", "num_trajectories": 2}
PIXEL = {"weight": 2.0}

LOOPS = {
    "simpo": ({"type": "simpo", "reduction": "mean", "beta": 100.0}, FINAL),
    "pixel-simpo": ({"type": "simpo", "pixel": PIXEL, "reduction": "mean", "beta": 100.0}, FINAL),
    "dpo": ({"type": "dpo"}, FINAL),
    "sft": ({"type": "sft", "reduction": "mean"}, FINAL),
    "pixel-sft": ({"type": "sft", "reduction": "mean", "pixel": PIXEL}, FINAL),
    "mapo": ({"type": "mapo"}, FINAL),
    "ddpo": ({"type": "ddpo"}, WALKS),
    "d3po": ({"type": "d3po"}, WALKS),
    "pixel-spo": ({"type": "spo", "pixel": PIXEL}, {"type": "stepwise", "num_candidates": 2, "threshold": 0.0}),
}
FIRST_LOSS = {"dpo": math.log(2), "d3po": math.log(2), "pixel-spo": 3 * math.log(2)}
UNITS = {"ddpo": 10, "d3po": 5, "pixel-spo": 5}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objective-loops")
    single_process_group(folder)
    return tiny_pipeline(folder / "pipeline")


def run(config, telemetry, **more):
    mailbox = Mailbox(config.run.path / "adapters")
    rollout = Rollout(config, mailbox)
    result = train(0, 1, config, rollout, mailbox, telemetry, device=CPU, **more)
    return result, mailbox, rollout


@pytest.mark.parametrize("name", LOOPS)
def test_an_objective_trains_publishes_and_reports(pipeline, tmp_path, name):
    objective, sampler = LOOPS[name]
    learner = {"updates_per_batch": 1, "max_batches": 2, "micro_batch_pairs": 4}
    config = small_config(pipeline, tmp_path, objective=objective, sampler=sampler, **learner)
    telemetry = Telemetry()
    result, mailbox, rollout = run(config, telemetry)
    assert result.finished and result.counters.step == 2 and result.counters.skipped_updates == 0
    assert len({version.sha256 for version in mailbox.published}) == 3, "every batch changed the weights"
    line = telemetry.lines[1]
    assert math.isfinite(line["loss/total"]) and line["loss/grad_norm"] > 0
    if name in FIRST_LOSS:
        assert line["loss/total"] == pytest.approx(FIRST_LOSS[name], abs=5e-3)
    assert line["pairs/trained"] == 2 * UNITS.get(name, 1) and line["pairs/kept_share"] == 1
    assert ("loss/pixel" in line) == ("pixel" in objective)
    assert {tag.partition("/")[0] for tag in line} <= set(GROUPS), "what TensorBoard's writer takes"
    assert rollout.stats()["trained"] == 4


@pytest.mark.parametrize("name", ["simpo", "ddpo"])
def test_killed_and_resumed_equals_uninterrupted(pipeline, tmp_path, name):
    """Noise and timesteps of final latents come back too, and the rewards of prompts: 8 groups are of 5 prompts."""
    objective, sampler = LOOPS[name]

    def config_in(folder):
        return small_config(pipeline, folder, objective=objective, sampler=sampler, updates_per_batch=1)

    whole, parts = Telemetry(), Telemetry()
    _, expected, _ = run(config_in(tmp_path / "whole"), whole)

    class Killed(BaseException):
        pass

    config = config_in(tmp_path / "parts")
    mailbox = Mailbox(config.run.path / "adapters")
    rollout = Rollout(config, mailbox)

    def kill(batch):
        if batch == 3:
            raise Killed

    rollout.before_take = kill
    with pytest.raises(Killed):
        train(0, 1, config, rollout, mailbox, parts, device=CPU)
    torch.manual_seed(12345)
    _, found, _ = run(config, parts, resume_from=find_checkpoint("auto", tmp_path / "parts"))
    assert found.actor.version.sha256 == expected.actor.version.sha256
    for step, line in whole.lines.items():
        assert parts.lines[step]["loss/total"] == line["loss/total"]


def test_rewards_of_another_history_are_refused_on_resume(pipeline, tmp_path):
    objective, sampler = LOOPS["ddpo"]
    learner = {"updates_per_batch": 1, "max_batches": 1}
    run(small_config(pipeline, tmp_path, objective=objective, sampler=sampler, **learner), Telemetry())
    longer = small_config(pipeline, tmp_path, objective={**objective, "prompt_history": 32}, sampler=sampler, **learner)
    with pytest.raises(CheckpointError, match=r"prompt_history is 16 in the checkpoint and 32 in this run"):
        run(longer, Telemetry(), resume_from=find_checkpoint("auto", tmp_path))
