"""A driver with actors that only coordinate: `python -m tests.cluster.control_actors ADDRESS`.

Prints how many are not on the driver's node: when they have started, and when each was killed and started again.
"""

from __future__ import annotations

import sys
from typing import Any

import ray

from rollout.actors import control_options

ACTORS = 6
"""Placed at random over three nodes they are all with the driver once in 729 times."""


class Control:
    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def main(address: str) -> None:
    ray.init(address=address, log_to_driver=False)
    here = ray.get_runtime_context().get_node_id()
    actors = [ray.remote(Control).options(**control_options()).remote() for _ in range(ACTORS)]
    print("started elsewhere:", elsewhere(actors, here))
    for actor in actors:
        ray.kill(actor, no_restart=False)
    print("started again elsewhere:", elsewhere(actors, here))


def elsewhere(actors: list[Any], here: str) -> int:
    return sum(node != here for node in ray.get([actor.node.remote() for actor in actors]))


if __name__ == "__main__":
    main(sys.argv[1])
