"""The command with every weight trained, under Ray: two ranks, a worker with a copy of its base, a pipeline."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline

from learner.checkpoint import list_committed
from learner.summary import read_summary
from rollout.adapter import adapter_checksum
from tests.learner.command import FINISH_SEC, Command, metrics, tiny_settings

FULL = ["model.trainable=full", "model.lora={}", "learner.optimizer.lr=1e-4", "run.name=full"]


@pytest.mark.slow
@pytest.mark.timeout(FINISH_SEC + 60)
def test_a_run_that_trains_everything_leaves_a_pipeline(tmp_path):
    settings = tiny_settings(tmp_path)
    run_dir = tmp_path / "run"
    run = Command([*settings, *FULL, "learner.max_batches=2", "learner.engine.zero_stage=3"], run_dir)
    status, output = run.finish()
    run.assert_no_orphans()
    assert status == 0, output
    assert "Use the model with diffusers" in output and f'from_pretrained("{run_dir / "model"}")' in output
    assert not (run_dir / "lora").exists() and list_committed(run_dir)
    summary = read_summary(run_dir / "summary.json")
    assert summary.steps == 4 and summary.groups.trained == 8 and summary.eval.after.keys() == {"reward"}
    losses = [line["loss/total"] for line in metrics(run_dir) if "loss/total" in line]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)

    trained = DiffusionPipeline.from_pretrained(run_dir / "model").unet
    assert adapter_checksum(dict(trained.named_parameters())) == summary.adapter_sha256
    pretrained = next(text for text in settings if text.startswith("model.pretrained")).partition("=")[2]
    base = dict(DiffusionPipeline.from_pretrained(pretrained).unet.named_parameters())
    assert not any(torch.equal(base[name], parameter) for name, parameter in trained.named_parameters())
