"""What the learner reports, by TensorBoard tag: a line for every optimiser step, and more with the last one of a batch.

Group statistics are summed over all ranks first: each rank sees only its share of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from learner.update import UpdateResult, reduce_over_ranks
from rollout.groups import Group
from rollout.memory import peak_memory_bytes

_TAGS = {
    "loss": "loss/total",
    "ratio/win": "ratio/win_mean",
    "ratio/lose": "ratio/lose_mean",
    "ratio/policy": "ratio/policy_mean",
    "ratio/clamped": "ratio/clamped_share",
}
"""An objective's metric -> its tag, where they differ: a mean over pairs, or a share of them."""


def update_metrics(result: UpdateResult | None, pairs: int, lr: float) -> dict[str, float]:
    """Tags of one optimiser step; `result` is None when no rank had a pair for it."""
    metrics: dict[str, float] = {"pairs/trained": pairs, "loss/learning_rate": lr}
    if result is None:
        return metrics
    metrics |= {_tag(name): value for name, value in result.means.items()}
    return metrics | {"loss/grad_norm": result.grad_norm, "loss/grad_rms_over_eps": result.grad_rms_over_eps}


def _tag(name: str) -> str:
    if name.startswith("count/"):
        return name.replace("count/", "pairs/")
    group, _, rest = name.partition("/")
    if group in ("error", "pixel"):  # of pictures, in the latent or decoded: what the loss was made of
        return f"loss/{group}_{rest.replace('/', '_')}"
    return _TAGS.get(name, name)


def group_metrics(
    groups: Sequence[Group], learner_step: int, pairs_possible: int, device: torch.device
) -> dict[str, float]:
    """Tags of one global batch's groups, over all ranks. Collective.

    `pairs_possible`: pairs that a group would have if none fell below the threshold.
    """
    local = [
        len(groups),
        sum(group.num_pairs for group in groups),
        sum(group.final_score for group in groups),
        sum(float(group.scores.double().sum()) for group in groups),
        sum(group.scores.numel() for group in groups),
        sum(learner_step - group.policy_step for group in groups),
    ]
    count, pairs, final, scores, scored, staleness = reduce_over_ranks(local, torch.distributed.ReduceOp.SUM, device)
    return {
        "pairs/per_group": pairs / count,
        "pairs/kept_share": pairs / (count * pairs_possible),
        "reward/final_mean": final / count,
        "reward/step_mean": scores / max(1.0, scored),
        "weights/staleness_steps": staleness / count,
    }


def queue_metrics(stats: Mapping[str, Any]) -> dict[str, float]:
    """Tags of the queue's numbers; counts by reason become one tag each."""
    metrics: dict[str, float] = {}
    for name, value in stats.items():
        if isinstance(value, Mapping):
            metrics |= {f"queue/{name}_{reason}": float(count) for reason, count in value.items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            metrics[f"queue/{name}"] = float(value)
    return metrics


def memory_metrics(device: torch.device) -> dict[str, float]:
    """The most that this process has held so far."""
    metrics = {"memory/learner_bytes": float(peak_memory_bytes())}
    if device.type == "cuda":
        metrics["memory/learner_gpu_bytes"] = float(peak_memory_bytes(device))
    return metrics
