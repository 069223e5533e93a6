"""Which steps a trained adapter changes, by how much, and what each does to the picture.

    python -m tests.benchmarks.step_shift --adapter runs/quickstart/adapters/32.safetensors
    python -m tests.benchmarks.step_shift --adapter FILE --rank 8 --within 51..51 101..951

Two tables, as JSON:

- shift: for each step, the mean over its latents of KL(policy || reference), (mu - mu_ref)^2 / 2 sigma^2 averaged over
  elements. The mean log-ratio of what the policy draws there is just this, so the step is clamped once it is above
  log(1 + clip): 0.095 for 0.1, 0.26 for 0.3.
- finishes: what the judge reads in the evaluation's pictures where the adapter is in force in some steps alone and
  the untrained network computes the others. `none` and `all` are the two ends.

Some four minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from configs.load import load_config
from rollout.miniature.judge import Judge
from rollout.policy import DiffusionPolicy
from rollout.prompts import evaluation_prompts
from rollout.sampling import PromptNoise
from rollout.transition import transition
from tests.benchmarks.pair_margins import configured_policy

Steps = tuple[int, int]
"""The lowest and the highest timestep of a step that the adapter is in force in."""
NONE, ALL = (1001, 1001), (0, 1000)
PART = 32
"""Pictures sampled together."""


def steps_of(text: str) -> Steps:
    low, _, high = text.partition("..")
    return int(low), int(high)


@torch.no_grad()
def walk(
    policy: DiffusionPolicy, prompts: Sequence[str], seeds: Sequence[int], within: Steps
) -> tuple[Tensor, dict[int, Tensor]]:
    """Finished latents [B, C, H, W], and by timestep how far the adapter moved the step: KL to the reference, [B]."""
    noise = PromptNoise(seeds, policy.latent_shape, policy.device)
    asked = policy.encode(prompts)
    x, shift = noise.draw(), {}
    for timestep in policy.schedule.timesteps.tolist():
        t = torch.full((len(prompts),), timestep)
        adapted = within[0] <= timestep <= within[1]
        with nullcontext() if adapted else policy.reference():
            move = transition(policy.schedule, policy.predict(x, t, asked), x, t)
        if within == ALL:
            with policy.reference():
                base = transition(policy.schedule, policy.predict(x, t, asked), x, t)
            shift[timestep] = ((move.mean - base.mean) ** 2 / (2 * move.std**2)).mean((1, 2, 3))
        x = move.sample(noise.draw())
    return x, shift


def measured(
    policy: DiffusionPolicy, prompts: Sequence[str], seeds: Sequence[int], within: Steps
) -> tuple[dict[str, float], dict[int, float]]:
    """Share of each finish, and the mean shift of each step (empty unless every step is adapted)."""
    judge, finishes, shifts = Judge(), Counter[str](), []
    for start in range(0, len(prompts), PART):
        part = slice(start, start + PART)
        latents, shift = walk(policy, prompts[part], seeds[part], within)
        finishes.update(reading.finish for reading in judge.read(policy.decode(latents)))
        shifts.append(shift)
    mean = {t: round(float(torch.cat([each[t] for each in shifts]).mean()), 4) for t in shifts[0]}
    return {finish: round(count / len(prompts), 3) for finish, count in sorted(finishes.items())}, mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="a published adapter")
    parser.add_argument("--rank", type=int, default=8, help="of that adapter")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--within", type=steps_of, nargs="*", default=[(1, 1), (51, 51), (101, 251), (301, 951)],
                        metavar="LOW..HIGH", help="timesteps in which the adapter is in force")  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config("quickstart", [f"model.lora.rank={options.rank}", f"evaluation.num_prompts={options.prompts}"])
    policy, prompts = configured_policy(config, options.adapter), evaluation_prompts(config.evaluation)
    named = {"none": NONE, **{f"{low}..{high}": (low, high) for low, high in options.within}, "all": ALL}
    seeds = range(config.evaluation.seed, config.evaluation.seed + options.prompts)
    found = {name: measured(policy, prompts, seeds, within) for name, within in named.items()}
    print(json.dumps({"shift": found["all"][1], "finishes": {name: row[0] for name, row in found.items()}}, indent=1))


if __name__ == "__main__":
    main()
