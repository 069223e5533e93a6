"""Random generators of one rank: seeded at the start, kept in checkpoints. A library may draw from any of them."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from reward.weights_file import save_tensors


def seed_generators(seed: int) -> None:
    """torch's, Python's and numpy's global generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def save_generators(path: Path, device: torch.device) -> None:
    """The state of every generator of this process into a safetensors file."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    plain = {
        "python": [version, gauss],
        "numpy": [numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]],
    }
    save_tensors(tensors, path, {"plain": json.dumps(plain)})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load_generators(path: Path, device: torch.device) -> None:
    """Inverse of `save_generators`."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()["plain"])
    torch.set_rng_state(tensors["torch"])
    version, gauss = plain["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    position, has_gauss, numpy_gauss = plain["numpy"]
    words = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, numpy_gauss))
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
