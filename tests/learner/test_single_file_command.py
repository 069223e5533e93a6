"""The command on a checkpoint in one file: it trains, and what it prints at the end loads what it left."""

from __future__ import annotations

import pytest
import torch

from learner.summary import read_summary
from tests.learner.command import FINISH_SEC, Command, tiny_settings
from tests.original_layout import write_single_file


@pytest.mark.slow
@pytest.mark.timeout(FINISH_SEC + 60)
def test_a_run_from_a_single_file_ends_with_code_that_loads_it(tmp_path):
    settings = tiny_settings(tmp_path)
    folder = tmp_path / "pipeline"
    file = write_single_file("sd", folder, tmp_path / "model.safetensors")
    run = Command(
        [*settings, f"model.pretrained={file}", f"model.config={folder}", "learner.max_batches=1", "learner.ranks=1"],
        tmp_path / "run",
    )
    status, output = run.finish()
    run.assert_no_orphans()
    assert status == 0, output
    assert read_summary(tmp_path / "run" / "summary.json").steps == 2
    code = output.split("Use the LoRA with diffusers:")[1].split("\n\n")[1]
    names = {}
    exec("\n".join(line.strip() for line in code.splitlines()), names)
    unet = names["pipeline"].unet
    loaded = [p for name, p in unet.named_parameters() if ".lora_B." in name]
    assert loaded and any(bool(torch.any(p != 0)) for p in loaded)
