"""What the evaluation's tests compare: a policy, the LoRA that was exported from it, and pictures on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from configs import AtelierConfig
from configs.model import ModelSection, NoiseSection
from configs.schema import RunSection
from learner.export import export_lora
from rollout.policy import DiffusionPolicy, load_policy

STEPS = 3


def exported_policy(
    model: ModelSection, run: Path, strength: float, noise: NoiseSection | None = None
) -> DiffusionPolicy:
    """Write run/lora; the policy that it was exported from, its up-projections random with this deviation."""
    config = AtelierConfig(run=RunSection(name=run.name, dir=run), model=model)
    policy = load_policy(model, noise or NoiseSection(num_steps=STEPS), "cpu", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            if "lora_B" in name:
                parameter.copy_(strength * torch.randn(parameter.shape, generator=generator))
    export_lora(policy.adapter_state(), config, steps=1, before={}, after={})
    return policy


def stored(folder: Path) -> np.ndarray:
    """uint8 [N, h, w, 3] of a folder's PNG files, in the order of their names."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])
