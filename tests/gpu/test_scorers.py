"""Every published scorer at full size, random weights: prints what docs/benchmarks.md holds."""

import json

import torch

from tests.benchmarks.scorers import run


def test_all_scorers_at_full_size(capsys):
    found = run(torch.device("cuda"), tiny=False, batch=32, side=512, rounds=8)
    with capsys.disabled():
        print("\n" + json.dumps(found, indent=2))
    assert all(value["images_per_sec"] > 1 for value in found.values())
