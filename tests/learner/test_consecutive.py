"""Runs one after the other by the commands of docs/objectives.md, on the miniature, in small batches."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from configs.load import load_config
from learner.summary import read_summary
from rollout.init_lora import read_lora
from tests.learner.command import FINISH_SEC, ROOT, Command, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5 * FINISH_SEC)]
SIZES = [
    "noise.num_steps=5", "learner.max_batches=2", "learner.groups_per_batch=2", "learner.optimizer.warmup_steps=0",
    "queue.capacity_groups=4", "rollout.workers.initial=1", "rollout.workers.chunk_groups=2",
    "evaluation.num_prompts=2", "evaluation.grid_size=2",
]  # fmt: skip
SAMPLER_SIZES = {
    "sft": [],
    "sft-spo": ["rollout.sampler.num_candidates=2", "rollout.sampler.threshold=0.0"],
    "sft-spo-merged": ["rollout.sampler.num_candidates=2", "rollout.sampler.threshold=0.0"],
    "spo-pixel-simpo": ["rollout.sampler.num_images=2"],
}
"""Run -> what makes its rollouts small; every pair is kept, so that every batch trains."""


def documented() -> list[list[str]]:
    """The commands of the section's first block, without `python -m`."""
    text = (ROOT / "docs" / "objectives.md").read_text()
    block = re.search(r"## One run after another.*?```bash\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    lines = block[1].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("python -m ")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder in which the documented commands were typed, each ended with status 0."""
    here = tmp_path_factory.mktemp("consecutive")
    (module, *arguments), *commands = documented()
    assert module == "rollout.miniature.dataset"
    arguments[arguments.index("--count") + 1] = "6"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=here, env=environment, check=True, timeout=FINISH_SEC
    )
    for module, *settings in commands:
        assert module == "learner.main"
        name = next(text for text in settings if text.startswith("run.name=")).partition("=")[2]
        more = [*SIZES, *SAMPLER_SIZES[name]]
        status, output = Command([*settings, *more], here / "runs" / name, cwd=here).finish()
        assert status == 0, output
    return here / "runs"


def start_and_end(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The first adapter that a run published, and the last one."""
    files = sorted((run_dir / "adapters").glob("*.safetensors"), key=lambda file: int(file.stem))
    return load_file(files[0]), load_file(files[-1])


def pictures(run_dir: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What the evaluations before and after a run measured, the same prompts and seeds."""
    summary = read_summary(run_dir / "summary.json")
    return dict(summary.eval.before), dict(summary.eval.after)


def test_the_adapter_goes_on_from_where_the_first_run_ended(runs):
    start, end = start_and_end(runs / "sft-spo")
    exported, model = read_lora(str(runs / "sft")), load_config(runs / "sft-spo" / "config.yaml").model
    scale = model.lora.scale_numerator / model.lora.rank
    assert start.keys() == exported.keys()
    for name, tensor in exported.items():
        torch.testing.assert_close(start[name] * (scale if ".lora_B." in name else 1.0), tensor, rtol=1e-5, atol=1e-8)
    assert max(float(tensor.abs().max()) for name, tensor in exported.items() if ".lora_B." in name) > 0
    assert any(not torch.equal(start[name], end[name]) for name in start), "and trains"
    assert pictures(runs / "sft-spo")[0] == pytest.approx(pictures(runs / "sft")[0]), "before: still the base"
    ratios = [line["ratio/win_mean"] for line in metrics(runs / "sft-spo") if "ratio/win_mean" in line]
    assert ratios[0] != pytest.approx(1, abs=1e-6), "the reference is the base"


@pytest.mark.parametrize(("first", "second"), [("sft", "sft-spo-merged"), ("sft-spo", "spo-pixel-simpo")])
def test_merged_the_second_run_s_base_is_where_the_first_one_ended(runs, first, second):
    start, end = start_and_end(runs / second)
    assert all(not tensor.any() for name, tensor in start.items() if ".lora_B." in name), "nothing on top yet"
    assert any(bool(tensor.any()) for name, tensor in end.items() if ".lora_B." in name), "and trains"
    assert pictures(runs / second)[0] == pytest.approx(pictures(runs / first)[1], rel=1e-3, abs=1e-3)


def test_the_pixel_term_is_in_force_in_the_last_run(runs):
    lines = [line for line in metrics(runs / "spo-pixel-simpo") if "loss/pixel" in line]
    assert lines
    for line in lines:
        assert line["loss/total"] == pytest.approx(line["loss/latent"] + 2.0 * line["loss/pixel"], rel=1e-4)
