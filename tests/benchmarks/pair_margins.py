"""What the pairs of a walk teach: how sure the preference model is of each, and what sets the winner apart.

    python -m tests.benchmarks.pair_margins                                    # the miniature as it ships
    python -m tests.benchmarks.pair_margins --adapter runs/NAME/adapters/80.safetensors

By the finish that the walk ends with, which the judge reads from the picture a random continuation arrives at, and by
the pairs' timestep:

- margin: by how much softmax(s_win, s_lose) differs, 0 to 1; `rollout.sampler.threshold` is its lower bound.
- detail: by how much more of it the winner's predicted picture has than the loser's, as a share of their mean. A
  picture's detail is the mean absolute Laplacian of its channels: hatched pictures have most, soft ones least.

Some ten minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.load import load_config
from configs.schema import AtelierConfig
from rollout.adapter import adapter_checksum, deserialise_adapter
from rollout.miniature.judge import Judge
from rollout.policy import DiffusionPolicy, load_policy
from rollout.prompts import PromptStream, load_prompts
from rollout.records import PreferenceGroup
from rollout.samplers import build_sampler
from rollout.transition import predict_x0

RANGES = ((0, 249), (250, 449), (450, 649), (650, 799))
"""Of a pair's timestep."""
THRESHOLD = 0.3
Found = dict[str, dict[tuple[int, int], list[tuple[float, float]]]]
"""Finish -> range of timesteps -> margin and difference of detail of each pair."""


def configured_policy(config: AtelierConfig, adapter: Path | None) -> DiffusionPolicy:
    """The run's policy on the CPU, as it starts or with a published adapter."""
    policy = load_policy(config.model, config.noise, "cpu", seed=config.run.seed)
    policy.max_batch = config.rollout.workers.max_batch
    if adapter is not None:
        state = deserialise_adapter(adapter.read_bytes())
        policy.load_adapter(state, adapter_checksum(state))
    return policy


def walks(config: AtelierConfig, policy: DiffusionPolicy, prompts: int) -> Iterator[tuple[PreferenceGroup, str]]:
    """Groups with every pair, and the finish of the last pair's winner."""
    sampler = build_sampler(config, policy, "cpu")
    stream, judge = PromptStream(load_prompts(config.prompts.source), config.run.seed), Judge()
    for start in range(0, prompts, config.rollout.workers.chunk_groups):
        items = [stream.item(n) for n in range(start, start + config.rollout.workers.chunk_groups)]
        groups = sampler.sample(items, policy_step=0, adapter_sha256="0" * 64, worker="margins")
        ended = [group for group in groups if int(group.timestep[-1]) == 1]
        pictures = policy.decode(torch.stack([group.x_prev_win[-1] for group in ended]))
        for group, reading in zip(ended, judge.read(pictures), strict=True):
            yield group, reading.finish


def detail(pictures: Tensor) -> Tensor:
    """Mean absolute Laplacian [B] of pictures [B, 3, H, W]."""
    kernel = pictures.new_tensor([[0, -1, 0], [-1, 4, -1], [0, -1, 0]]).repeat(3, 1, 1, 1)
    return F.conv2d(pictures, kernel, groups=3).abs().mean((1, 2, 3))


@torch.no_grad()
def detail_gained(policy: DiffusionPolicy, group: PreferenceGroup) -> Tensor:
    """By how much more detail each pair's winner has than its loser, over their mean, [T].

    Of the x0 predicted where the scorer saw it, or of the picture itself after the last step.
    """
    pairs = len(group.timestep)
    x = torch.cat([group.x_prev_win, group.x_prev_lose])
    target = policy.schedule.next_timestep(group.timestep).repeat(2)
    x0 = predict_x0(policy.schedule, policy.predict(x, target, policy.encode([group.prompt] * 2 * pairs)), x, target)
    finished = (target == 0)[:, None, None, None]
    win, lose = detail(policy.decode(torch.where(finished, x, x0))).split(pairs)
    return 2 * (win - lose) / (win + lose)


def collect(policy: DiffusionPolicy, groups: Iterator[tuple[PreferenceGroup, str]]) -> tuple[Found, dict[str, int]]:
    """Margins and differences of detail, and the number of walks by finish."""
    found: Found = defaultdict(lambda: {each: [] for each in RANGES})
    count: dict[str, int] = defaultdict(int)
    for group, finish in groups:
        count[finish] += 1
        sure = torch.tanh((group.score_win - group.score_lose) / 2)  # softmax of two, first less second
        gained = detail_gained(policy, group)
        for low, high in RANGES:
            inside = (group.timestep >= low) & (group.timestep <= high)
            found[finish][low, high] += zip(sure[inside].tolist(), gained[inside].tolist(), strict=True)
    return found, count


def tabulate(found: Found, count: dict[str, int]) -> dict[str, dict[str, float]]:
    """Finish -> walks, and by range the mean margin, the share above THRESHOLD, and the mean detail gained."""
    table = {}
    for finish, by_range in sorted(found.items()):
        row = {"walks": float(count[finish])}
        for (low, high), values in by_range.items():
            margins, gained = torch.tensor(values).unbind(1)
            row[f"mean margin {low}..{high}"] = float(margins.mean())
            row[f"above {THRESHOLD} {low}..{high}"] = float((margins > THRESHOLD).float().mean())
            row[f"detail gained {low}..{high}"] = float(gained.mean())
            row[f"its standard error {low}..{high}"] = float(gained.std() / len(gained) ** 0.5)
        table[finish] = {name: round(value, 3) for name, value in row.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--adapter", type=Path, help="a published adapter; without it the model as it ships")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config("quickstart", ["rollout.sampler.threshold=0.0", "rollout.sampler.kappa=750"])
    policy = configured_policy(config, options.adapter)
    print(json.dumps(tabulate(*collect(policy, walks(config, policy, options.prompts))), indent=1))


if __name__ == "__main__":
    main()
