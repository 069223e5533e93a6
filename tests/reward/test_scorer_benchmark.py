"""The GPU benchmark of the scorers runs with small models on a CPU."""

from __future__ import annotations

import torch

from reward import SCORERS
from tests.benchmarks.scorers import run


def test_every_published_scorer_is_measured() -> None:
    found = run(torch.device("cpu"), tiny=True, batch=3, side=40, rounds=1)
    assert found.keys() == (SCORERS.keys() - {"mixture", "import", "remote"}) | {"preparing"}
    assert all(value["images_per_sec"] > 0 for value in found.values())
    off = {kind: value["off_cpu"] for kind, value in found.items() if kind != "preparing"}
    assert max(off.values()) < 1e-5, f"{off}: the same device, but kernels for another batch round otherwise"
    assert found["hps"]["name"].startswith("hps-v2.1-")
