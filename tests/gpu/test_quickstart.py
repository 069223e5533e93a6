"""The quickstart on CUDA in bfloat16, through the command that users run: all roles share one card."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "model.dtype=bfloat16",
    "learner.max_batches=6",
    "evaluation.num_prompts=32",
    *(f"{role}.resources.gpus=0.25" for role in ("rollout.workers", "learner", "evaluation")),
]
"""A quarter each: the quickstart starts two workers (tests/configs/test_gpu_share.py adds them up)."""


def test_quickstart_trains_on_cuda(tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "learner.main", "--config", "configs/quickstart.yaml", *SETTINGS]
    done = subprocess.run([*command, f"run.dir={run_dir}"], cwd=ROOT, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] > 0 and summary["pairs_trained"] > 0
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    ratios = [line["ratio/win_mean"] for line in lines if "ratio/win_mean" in line]
    assert abs(ratios[0] - 1) < 0.02, "bfloat16: sampler and learner agree before the first update"
    gpu = [line["memory/learner_gpu_bytes"] for line in lines if "memory/learner_gpu_bytes" in line]
    assert gpu and gpu[0] > 0, "the learner computed on the card"
