"""Every published scorer at full size, random weights: prints what docs/benchmarks.md holds."""

import json

import pytest
import torch

from reward import SCORERS
from tests.benchmarks.scorers import run


@pytest.mark.timeout(1800)  # four checkpoints of up to 4 GB are made, written, read and hashed on the CPU
def test_all_scorers_at_full_size(capsys):
    found = run(torch.device("cuda"), tiny=False, batch=32, side=512, rounds=8)
    with capsys.disabled():
        print("\n" + json.dumps(found, indent=2))
    assert found.keys() == (SCORERS.keys() - {"mixture", "import", "remote"}) | {"preparing"}
    assert all(value["images_per_sec"] > 1 for value in found.values())
    scorers = [value for kind, value in found.items() if kind != "preparing"]
    assert all(value["peak_gib"] < 24 for value in scorers)
    assert all(value["off_cpu"] < 1e-3 for value in scorers), "float32 without TF32, as on a CPU"
