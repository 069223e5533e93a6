"""An SD-1.5-sized rollout and learner step, random weights, bfloat16: prints what docs/benchmarks.md holds."""

import json

import torch

from tests.benchmarks.throughput import run

H200_BF16_TFLOPS = 989.0  # NVIDIA H200 data sheet, dense bfloat16


def test_sd15_sized_rollout_and_learner(capsys):
    result = run("sd15", torch.device("cuda"), prompts=4, k=4, micro_batch=16, max_batch=32)
    for part in ("rollout", "learner"):
        result[part]["share_of_peak"] = result[part]["tflops"] / H200_BF16_TFLOPS
    with capsys.disabled():
        print("\n" + json.dumps(result, indent=2))
    assert result["dtype"] == "torch.bfloat16"
    assert result["rollout"]["pairs"] > 0
    assert result["learner"]["worst_ratio_error_before_training"] < 0.05


def test_sdxl_sized_rollout_and_learner(capsys):
    result = run("sdxl", torch.device("cuda"), prompts=1, k=2, micro_batch=1, max_batch=2)
    for part in ("rollout", "learner"):
        result[part]["share_of_peak"] = result[part]["tflops"] / H200_BF16_TFLOPS
    with capsys.disabled():
        print("\n" + json.dumps(result, indent=2))
    assert result["dtype"] == "torch.bfloat16"
    assert result["rollout"]["pairs"] > 0
    assert result["learner"]["worst_ratio_error_before_training"] < 0.05


def test_miniature_ratio_in_bfloat16(capsys):
    """Sampler against learner before training: how far bfloat16 moves the ratio away from 1."""
    result = run("miniature", torch.device("cuda"), prompts=8, k=4, micro_batch=32, max_batch=64)
    with capsys.disabled():
        print("\n" + json.dumps(result, indent=2))
    assert result["learner"]["worst_ratio_error_before_training"] < 0.05
