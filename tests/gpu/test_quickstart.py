"""The quickstart on CUDA in bfloat16, through the command that users run."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_quickstart_trains_on_cuda(tmp_path):
    run_dir = tmp_path / "run"
    share = [f"{role}.resources.gpus=0.3" for role in ("rollout.workers", "learner", "evaluation")]
    settings = ["model.dtype=bfloat16", "learner.max_batches=6", "evaluation.num_prompts=32", f"run.dir={run_dir}"]
    command = [sys.executable, "-m", "learner.main", "--config", "configs/quickstart.yaml", *settings, *share]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] > 0 and summary["pairs_trained"] > 0
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    ratios = [line["ratio/win_mean"] for line in lines if "ratio/win_mean" in line]
    assert abs(ratios[0] - 1) < 0.02, "bfloat16: sampler and learner agree before the first update"
