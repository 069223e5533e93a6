"""Which pictures the pairs come from: how sure the preference model is of each pair, by the finish of the walk's end.

    python -m tests.benchmarks.pair_margins                                    # the miniature as it ships
    python -m tests.benchmarks.pair_margins --adapter runs/NAME/adapters/80.safetensors

A pair's margin is by how much softmax(s_win, s_lose) differs, 0 to 1: `rollout.sampler.threshold` is its lower bound.
The finish is read by the judge from the picture that a random continuation arrives at. A few minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.load import load_config
from configs.schema import AtelierConfig
from rollout.adapter import adapter_checksum, deserialise_adapter
from rollout.miniature.judge import Judge
from rollout.policy import load_policy
from rollout.prompts import PromptStream, load_prompts
from rollout.records import PreferenceGroup
from rollout.samplers import build_sampler

RANGES = ((0, 249), (250, 499), (500, 749))
"""Of a pair's timestep."""
THRESHOLD = 0.3


def walks(config: AtelierConfig, prompts: int, adapter: Path | None) -> Iterator[tuple[PreferenceGroup, str]]:
    """Groups with every pair, and the finish of the last pair's winner."""
    policy = load_policy(config.model, config.noise, "cpu", seed=config.run.seed)
    policy.max_batch = config.rollout.workers.max_batch
    if adapter is not None:
        state = deserialise_adapter(adapter.read_bytes())
        policy.load_adapter(state, adapter_checksum(state))
    sampler = build_sampler(config, policy, "cpu")
    stream, judge = PromptStream(load_prompts(config.prompts.source), config.run.seed), Judge()
    for start in range(0, prompts, config.rollout.workers.chunk_groups):
        items = [stream.item(n) for n in range(start, start + config.rollout.workers.chunk_groups)]
        groups = sampler.sample(items, policy_step=0, adapter_sha256="0" * 64, worker="margins")
        ended = [group for group in groups if int(group.timestep[-1]) == 1]
        pictures = policy.decode(torch.stack([group.x_prev_win[-1] for group in ended]))
        for group, reading in zip(ended, judge.read(pictures), strict=True):
            yield group, reading.finish


def tabulate(groups: Iterator[tuple[PreferenceGroup, str]]) -> dict[str, dict[str, float]]:
    """Finish -> walks, and for each range of timesteps the mean margin and the share of pairs above THRESHOLD."""
    margins: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: {each: [] for each in RANGES})
    count: dict[str, int] = defaultdict(int)
    for group, finish in groups:
        count[finish] += 1
        sure = torch.tanh((group.score_win - group.score_lose) / 2)  # softmax of two, first less second
        for low, high in RANGES:
            inside = (group.timestep >= low) & (group.timestep <= high)
            margins[finish][low, high] += sure[inside].tolist()
    table = {}
    for finish, by_range in sorted(margins.items()):
        table[finish] = {"walks": float(count[finish])}
        for (low, high), found in by_range.items():
            values = torch.tensor(found)
            table[finish][f"mean margin {low}..{high}"] = round(float(values.mean()), 3)
            table[finish][f"above {THRESHOLD} {low}..{high}"] = round(float((values > THRESHOLD).float().mean()), 3)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--adapter", type=Path, help="a published adapter; without it the model as it ships")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config("quickstart", ["rollout.sampler.threshold=0.0"])
    print(json.dumps(tabulate(walks(config, options.prompts, options.adapter)), indent=1))


if __name__ == "__main__":
    main()
