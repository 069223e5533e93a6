"""Ray for a run: the cluster at an address, or one of its own on this machine, which nobody else can reach."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray._private import services

from learner.signals import Interrupted
from rollout.actors import NAMESPACE
from rollout.reach import keep_to_loopback, reach, use_token

_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a rank imports torch and DeepSpeed, maybe on a busy core
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a lost rank is noticed by its death
    "RAY_TRAIN_METRICS_ENABLED": "0",  # the run has its own telemetry
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the configuration mean the same for every process
    "RAY_USAGE_STATS_ENABLED": "0",
}


def connect(address: str | None) -> None:
    """Join the cluster at `address` or $RAY_ADDRESS, else start one on this machine that only loopback can reach.

    Raises ConnectionError where there is no cluster, or where this process uses a Ray session already.
    """
    for name, value in _TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    common = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.WARNING}
    try:
        found = address if address == "local" else reach(address)
    except OSError as error:
        raise ConnectionError(f"no Ray cluster at {address!r}: {error}") from error
    if ray.is_initialized():
        raise ConnectionError(
            f"this process uses the Ray session at {ray.get_runtime_context().gcs_address} already; "
            f"end it with ray.shutdown(), or start the run in a process of its own"
        )
    try:
        if found == "local":
            _start_local(common)
        else:
            _join(found, common)
    except BaseException:  # a signal's among them: what has been started ends
        ray.shutdown()
        raise


def _join(address: str, common: Mapping[str, Any]) -> None:
    try:
        ray.init(address=address, **common)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConnectionError(f"no Ray cluster at {address!r}: {str(error).strip().splitlines()[0]}") from error


def _start_local(common: Mapping[str, Any]) -> None:
    """A cluster of this machine's own; tried twice, since a busy machine may miss the 30 seconds that Ray gives it."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets a run starve beside whatever else runs here
    keep_to_loopback()
    use_token()  # as `python -m rollout.scale` does
    for attempts_left in (1, 0):
        try:
            with _own_sessions():
                ray.init(address="local", include_dashboard=False, **common)
            return
        except Interrupted:
            raise
        except Exception as error:  # a plain Exception is what Ray raises for a start that took too long
            ray.shutdown()
            if attempts_left == 0:
                reason = " ".join(str(error).split())
                raise ConnectionError(f"a local Ray cluster cannot be started: {reason}") from error


@contextmanager
def _own_sessions() -> Iterator[None]:
    """Processes that Ray starts meanwhile, and theirs, lead sessions of their own: Ray has no option for it.

    A signal to the command's process group, as a terminal and a Slurm step send it, then reaches the driver alone, and
    not the processes that it needs to save a checkpoint. They still end with the driver, as Ray has it.
    """
    plain = services.ConsolePopen
    services.ConsolePopen = partial(plain, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = plain


def resources(address: str | None) -> dict[str, float]:
    """What the cluster has in all, or this machine where `connect` would start a cluster on it; starts nothing.

    Raises ConnectionError where there is no cluster.
    """
    if (address or os.environ.get("RAY_ADDRESS") or "local") == "local":
        import torch  # counts the GPUs

        return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
    connect(address)
    try:
        return dict(ray.cluster_resources())
    finally:
        ray.shutdown()
