"""Names and Ray options that all actors of a run share, and how to find them from another process."""

from __future__ import annotations

import warnings
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from configs.rollout import ResourcesSection

NAMESPACE = "atelier"
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # Ray leaves the variable as it is for actors that ask for no GPU


class ActorNotFound(Exception):
    """No such actor on this cluster; the message names the runs that are there."""


def actor_name(role: str, run_name: str) -> str:
    return f"atelier-{role}-{run_name}"


def control_options(name: str | None = None, *, max_concurrency: int = 1000) -> dict[str, Any]:
    """Ray options of an actor that only coordinates: on the caller's node, no CPU, no GPU, restarted when it dies.

    Calls in flight are repeated after a restart, so every method must bear being repeated. The caller's node is no
    mere wish, since Ray passes over a soft one where no CPU is asked for, and places the actor at random: on a rollout
    node that may go at any time. Without its driver's node a run is over anyway.
    """
    here = ray.get_runtime_context().get_node_id()
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": max_concurrency,
        "runtime_env": {"env_vars": NO_GPU},
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }
    return options if name is None else {"name": name, "namespace": NAMESPACE, **options}


def compute_options(resources: ResourcesSection) -> dict[str, Any]:
    """Ray options of an actor that computes: what it asks for, as many threads as CPUs, no GPU it did not ask for."""
    threads = {"OMP_NUM_THREADS": str(max(1, int(resources.cpus)))}
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "resources": dict(resources.custom),
        "runtime_env": {"env_vars": threads if resources.gpus else {**threads, **NO_GPU}},
    }


def find_actor(role: str, run_name: str, namespace: str = NAMESPACE) -> Any:
    """Handle of a run's actor. Raises ActorNotFound naming the runs that this cluster has."""
    try:
        return ray.get_actor(actor_name(role, run_name), namespace=namespace)
    except ValueError as error:
        runs = ", ".join(running(role, namespace)) or "none"
        raise ActorNotFound(f"no run named {run_name!r} on this cluster; running: {runs}") from error


def running(role: str, namespace: str = NAMESPACE) -> list[str]:
    """Names of the runs that have an actor of this role."""
    prefix = actor_name(role, "")
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        entry["name"].removeprefix(prefix)
        for entry in named
        if entry["namespace"] == namespace and entry["name"].startswith(prefix)
    )


def was_restarted() -> bool:
    """Inside an actor's constructor: has Ray restarted it after a death?"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.60 warns about its own use of `actor_id` in there
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
