"""Rollout and learner steps of SD-1.5's, SDXL's and the miniature's size, random weights, bfloat16.

Each test prints what docs/benchmarks.md holds: rates, peak memory, share of the chip's rate, and how far bfloat16 moves
the ratio of sampler and learner away from 1 before training.
"""

import json

import pytest
import torch

from tests.benchmarks.throughput import run

HOPPER_BF16_TFLOPS = 989.0  # NVIDIA H100 SXM and H200 data sheets, dense bfloat16

SIZES = {
    "sd15": {"prompts": 4, "k": 4, "micro_batch": 16, "max_batch": 32},
    "sdxl": {"prompts": 1, "k": 2, "micro_batch": 1, "max_batch": 2},
    "miniature": {"prompts": 8, "k": 4, "micro_batch": 32, "max_batch": 64},
}


@pytest.mark.parametrize("model", SIZES)
def test_rollout_and_learner(model, capsys):
    result = run(model, torch.device("cuda"), **SIZES[model])
    for part in ("rollout", "learner"):
        result[part]["share_of_peak"] = result[part]["tflops"] / HOPPER_BF16_TFLOPS
    with capsys.disabled():
        print("\n" + json.dumps(result, indent=2))
    assert result["dtype"] == "torch.bfloat16"
    assert result["rollout"]["pairs"] > 0
    assert result["learner"]["worst_ratio_error_before_training"] < 0.05
