"""What a run asks of a cluster: actors, CPUs, GPUs and custom resources of each role. Neither Ray nor torch is needed.

print(render_placement(config, ray.cluster_resources()))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from configs.data import OnlineData
from configs.rollout import ResourcesSection
from configs.schema import AtelierConfig

_TOLERANCE = 1e-6
"""Ray counts resources in ten-thousandths; sums of fractions must not fail by rounding."""


@dataclass(frozen=True)
class RolePlacement:
    """What `count` actors of one role ask for, each."""

    role: str
    count: int
    cpus: float
    gpus: float
    custom: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> dict[str, float]:
        """Ray resource name to the amount that all actors of the role take together; nothing that is 0."""
        each = {"CPU": self.cpus, "GPU": self.gpus, **self.custom}
        return {name: amount * self.count for name, amount in each.items() if amount > 0}


def placement(config: AtelierConfig) -> list[RolePlacement]:
    """Every actor of a run, by role: workers as many as it starts with; the control actors take no CPU."""

    def role(name: str, count: int, resources: ResourcesSection) -> RolePlacement:
        return RolePlacement(name, count, resources.cpus, resources.gpus, dict(resources.custom))

    learner = [
        role("learner rank", config.learner.ranks, config.learner.resources),
        role("evaluator", 1, config.evaluation.resources),
    ]
    if not isinstance(config.data, OnlineData):
        return [*learner, RolePlacement("control", len(("books", "mailbox", "telemetry")), 0.0, 0.0)]
    shards = config.queue.shards if config.queue.shards > 1 else 0
    return [
        role("rollout worker", config.rollout.workers.initial, config.rollout.workers.resources),
        *learner,
        RolePlacement("control", len(("queue", "mailbox", "pool", "telemetry")) + shards, 0.0, 0.0),
    ]


def demand(roles: Sequence[RolePlacement]) -> dict[str, float]:
    """Ray resource name to the amount that the roles take together."""
    total: dict[str, float] = {}
    for role in roles:
        for name, amount in role.total.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def compare(roles: Sequence[RolePlacement], cluster_resources: Mapping[str, float]) -> list[str]:
    """A sentence for each resource that the cluster has too little of, with both numbers and who takes it.

    `cluster_resources` is what `ray.cluster_resources()` gives. Totals are compared; whether one node can hold an
    actor is for Ray to find out.
    """
    shortfalls = []
    for name, wanted in demand(roles).items():
        present = cluster_resources.get(name, 0.0)
        if wanted > present + _TOLERANCE:
            takers = ", ".join(
                f"{role.count} {role.role}{'s' if role.count > 1 else ''} x {role.total[name] / role.count:g}"
                for role in roles
                if name in role.total
            )
            shortfalls.append(
                f"{name}: {wanted:g} wanted ({takers}), {present:g} in the cluster. "
                f"Start with fewer actors, ask for less of it in each, or add nodes."
            )
    return shortfalls


def render_placement(config: AtelierConfig, cluster_resources: Mapping[str, float] | None = None) -> str:
    """A table of the roles and their totals; with `cluster_resources`, also whether the cluster has them."""
    roles = placement(config)
    total = demand(roles)
    names = ["CPU", "GPU", *sorted(set(total) - {"CPU", "GPU"})]
    rows = [["role", "actors", *names]]
    for role in roles:
        rows.append([role.role, str(role.count), *(f"{role.total.get(name, 0.0):g}" for name in names)])
    rows.append(["total", str(sum(role.count for role in roles)), *(f"{total.get(name, 0.0):g}" for name in names)])
    if cluster_resources is not None:
        rows.append(["cluster", "", *(f"{cluster_resources.get(name, 0.0):g}" for name in names)])
    lines = _aligned(rows)
    if isinstance(config.data, OnlineData):
        lines.append(_growth(config))
    if cluster_resources is not None:
        shortfalls = compare(roles, cluster_resources)
        lines += [f"short of {text}" for text in shortfalls] or ["The cluster has what this run asks for."]
    return "\n".join(lines)


def _growth(config: AtelierConfig) -> str:
    workers = config.rollout.workers
    each = {"CPU": workers.resources.cpus, "GPU": workers.resources.gpus, **workers.resources.custom}
    asks = ", ".join(f"{amount:g} {name}" for name, amount in each.items() if amount > 0) or "nothing"
    how = "grows and shrinks by itself" if workers.autoscale else "scaled by hand"
    return f"Rollout workers: {workers.min} to {workers.max}, {how}; each asks for {asks}."


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
