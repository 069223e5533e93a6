"""ZeRO under Ray: the command on two gloo ranks exports one rank's LoRA, whole, whatever the stage."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from learner.summary import read_summary
from tests.learner.command import FINISH_SEC, Command, metrics, tiny_settings
from tests.learner.test_engine import LR, TOLERANCE

ONE_BATCH = [
    "learner.max_batches=1", f"learner.optimizer.lr={LR}", "learner.optimizer.decay=constant",
    "evaluation.every_batches=null", "checkpoint.best=null",
]  # fmt: skip
"""Two updates on groups that every run samples alike, with the untrained model."""


def exported(settings, folder, ranks, stage):
    """The run's directory and its LoRA."""
    name = f"zero-{stage}-on-{ranks}"
    more = [f"run.name={name}", f"learner.ranks={ranks}", f"learner.engine.zero_stage={stage}"]
    run = Command([*settings, *ONE_BATCH, *more], folder / name)
    status, output = run.finish()
    run.assert_no_orphans()
    assert status == 0, output
    return run.run_dir, load_file(run.run_dir / "lora" / "pytorch_lora_weights.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(4 * FINISH_SEC)
def test_two_ranks_export_the_lora_of_one_at_every_stage(tmp_path):
    settings = tiny_settings(tmp_path)
    one, wanted = exported(settings, tmp_path, 1, 2)
    started = [line for line in metrics(one) if line["step"] == 1]
    assert started[0]["loss/total"] == pytest.approx(0.693147, abs=1e-6)
    moved = max(float(tensor.abs().max()) for name, tensor in wanted.items() if "lora_B" in name or ".up." in name)
    assert moved > LR, "lora_B starts at zero: two updates are far more than the tolerance"
    for stage in (1, 2, 3):
        run_dir, found = exported(settings, tmp_path, 2, stage)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.allclose(found[name], tensor, rtol=0, atol=TOLERANCE), (stage, name)
        assert read_summary(run_dir / "summary.json").pairs_trained == read_summary(one / "summary.json").pairs_trained
        pretrained = next(text for text in settings if text.startswith("model.pretrained")).partition("=")[2]
        StableDiffusionPipeline.from_pretrained(pretrained, safety_checker=None).load_lora_weights(run_dir / "lora")
