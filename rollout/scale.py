"""Change the number of rollout workers of a running job: python -m rollout.scale 16 --run quickstart

The learner does not notice: a new worker takes the current weights first, one that goes finishes its chunk.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import ray
from ray.exceptions import RayError

from rollout.actors import NAMESPACE, ActorNotFound, find_actor
from rollout.reach import reach


class ScaleError(Exception):
    """Why the number could not be changed, for the person at the terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 changed, 1 refused or not found, 2 wrong usage."""
    options = _parse(arguments)
    try:
        print(scale(options.workers, options.run, address=options.address, namespace=options.namespace))
    except ScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def scale(workers: int, run: str, *, address: str | None = None, namespace: str = NAMESPACE) -> str:
    """Set the target of a run's pool; returns the sentence to print. Raises ScaleError."""
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        ray.init(address=reach(address), namespace=namespace, log_to_driver=False, configure_logging=False)
    except (OSError, RayError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ScaleError(f"no Ray cluster at {address!r}: {reason} (--address HOST:PORT, or RAY_ADDRESS)") from error
    try:
        pool = find_actor("pool", run, namespace)
        before, after = ray.get(pool.set_target.remote(workers))
        alive = ray.get(pool.stats.remote())["alive"]
    except (ActorNotFound, ValueError) as error:
        raise ScaleError(str(getattr(error, "cause", None) or error)) from error
    except RayError as error:
        raise ScaleError(f"the pool of run {run!r} does not answer: {str(error).strip().splitlines()[0]}") from error
    finally:
        ray.shutdown()
    return f"rollout workers of {run}: {before} -> {after} ({alive} alive now)"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rollout.scale", description=__doc__.splitlines()[0])
    parser.add_argument("workers", type=int, help="rollout workers from now on, within rollout.workers.min..max")
    parser.add_argument("--run", required=True, help="name of the run (run.name)")
    parser.add_argument("--address", help="Ray's address, HOST:PORT; default: RAY_ADDRESS, else the cluster found here")
    parser.add_argument("--namespace", default=NAMESPACE, help="Ray namespace of the run (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
