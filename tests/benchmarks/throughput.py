"""How fast one rollout worker and one learner rank are: scored candidates/s, pairs/s, peak memory, share of the chip.

    python -m tests.benchmarks.throughput --model miniature            # what `make bench` runs on a CPU
    python -m tests.benchmarks.throughput --model sd15 --peak-tflops 989   # one H200 in bfloat16
    python -m tests.benchmarks.throughput --contiguous   # without `rollout.trainable.frozen_channels_last`

Rollout: 20 steps, k candidates, guidance 5, reference evaluated by the worker. Learner: forward and backward of the SPO
loss on the pairs that the rollout gave. Operations are counted by torch's FlopCounterMode over one call of each part.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.rollout import StepwiseSampler as SamplerSettings
from learner.objectives import spo_loss
from reward import Scorer
from rollout.conditioning import Conditioning
from rollout.policy import DiffusionPolicy
from rollout.prompts import PromptItem
from rollout.records import PreferenceGroup
from rollout.stepwise import StepwiseSampler
from rollout.transition import log_prob, transition
from tests.benchmarks.sized import miniature, sd15_policy, sdxl_policy, vit_h_scorer


def count_tflop(call: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def measure_rollout(
    policy: DiffusionPolicy, scorer: Scorer, prompts: int, k: int
) -> tuple[dict, list[PreferenceGroup]]:
    """Time one `StepwiseSampler.sample` over `prompts` prompts, after one small warm-up."""
    device = policy.device
    sampler = StepwiseSampler(policy, scorer, SamplerSettings(num_candidates=k, threshold=0.0))
    stamp: dict[str, Any] = {"policy_step": 0, "adapter_sha256": "0" * 64, "worker": "bench"}
    items = [PromptItem(n, "a small red circle on the left on a white background", n) for n in range(prompts)]
    sampler.sample(items, **stamp)
    before = sampler.counters.network_evaluations, sampler.counters.scored_candidates
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    synchronize(device)
    start = time.perf_counter()
    groups = sampler.sample(items, **stamp)
    synchronize(device)
    seconds = time.perf_counter() - start
    evaluations = sampler.counters.network_evaluations - before[0]
    candidates = sampler.counters.scored_candidates - before[1]
    x = torch.randn((1, *policy.latent_shape), device=device)
    t = torch.tensor([501], device=device)
    conditioning = policy.encode(["a"])
    with torch.no_grad():
        network = count_tflop(lambda: policy.predict(x, t, conditioning))
        decoder = count_tflop(lambda: policy.decode(x))
        reader = count_tflop(lambda: scorer.score(policy.decode(x), ["a"], t)) - decoder
    work = evaluations * network + candidates * (decoder + reader)
    return {
        "prompts": prompts,
        "k": k,
        "seconds": seconds,
        "scored_candidates_per_sec": candidates / seconds,
        "pairs": sum(group.num_pairs for group in groups),
        "tflop_per_evaluation": network,
        "tflop_per_decode": decoder,
        "tflop_per_score": reader,
        "tflops": work / seconds,
        "peak_gib": peak_gib(device),
    }, groups


def measure_learner(policy: DiffusionPolicy, groups: list[PreferenceGroup], micro_batch: int) -> dict:
    """Time forward and backward of the SPO loss over the groups' pairs, in micro-batches."""
    device = policy.device
    group = next(group for group in groups if group.num_pairs)
    rows = [n % group.num_pairs for n in range(micro_batch)]
    x_t, x_win, x_lose = (getattr(group, n)[rows].to(device) for n in ("x_t", "x_prev_win", "x_prev_lose"))
    assert group.ref_mean_win is not None
    reference, t = group.ref_mean_win[rows].to(device), group.timestep[rows].to(device)
    conditioning = Conditioning.from_rows([group.conditioning] * micro_batch).to(device)

    def step() -> float:
        move = transition(policy.schedule, policy.predict(x_t, t, conditioning), x_t, t)
        halves = [log_prob(x, mean, move.std) for mean in (move.mean, reference) for x in (x_win, x_lose)]
        loss, metrics = spo_loss(*halves, beta=10.0, clip=0.1)
        loss.mean().backward()
        return float((metrics["ratio/win"] - 1).abs().max())

    worst_ratio = step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rounds = 4
    synchronize(device)
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    synchronize(device)
    seconds = time.perf_counter() - start
    return {
        "micro_batch_pairs": micro_batch,
        "pairs_per_sec": rounds * micro_batch / seconds,
        "tflops": rounds * count_tflop(step) / seconds,
        "worst_ratio_error_before_training": worst_ratio,
        "peak_gib": peak_gib(device),
    }


def run(
    model: str,
    device: torch.device,
    *,
    prompts: int,
    k: int,
    micro_batch: int,
    max_batch: int,
    memory_format: torch.memory_format = torch.channels_last,
) -> dict:
    """Both measurements for `miniature`, `sd15` or `sdxl`; `memory_format` of the convolutions' frozen weights."""
    sized = {"sd15": sd15_policy, "sdxl": sdxl_policy}
    with tempfile.TemporaryDirectory() as folder:
        if model in sized:
            policy, scorer = sized[model](device), vit_h_scorer(device, Path(folder))
        else:
            policy, scorer = miniature(device)
    policy.max_batch = max_batch
    if memory_format == torch.contiguous_format:
        for part in (policy.network, policy._require_vae()):
            part.to(memory_format=memory_format)
    rollout, groups = measure_rollout(policy, scorer, prompts, k)
    learner = measure_learner(policy, groups, micro_batch)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "model": model,
        "device": name,
        "torch": torch.__version__,
        "dtype": str(policy.network.dtype),
        "memory_format": str(memory_format),
        "rollout": rollout,
        "learner": learner,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["miniature", "sd15", "sdxl"], default="miniature")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--peak-tflops", type=float, help="the chip's rated rate, for the share of it")
    parser.add_argument("--contiguous", action="store_true", help="frozen weights as PyTorch lays them out by itself")
    arguments = parser.parse_args()
    result = run(
        arguments.model, torch.device(arguments.device), prompts=arguments.prompts, k=arguments.k,
        micro_batch=arguments.micro_batch, max_batch=arguments.max_batch,
        memory_format=torch.contiguous_format if arguments.contiguous else torch.channels_last,
    )  # fmt: skip
    if arguments.peak_tflops:
        for part in ("rollout", "learner"):
            result[part]["share_of_peak"] = result[part]["tflops"] / arguments.peak_tflops
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
