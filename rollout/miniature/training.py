"""What the training commands share: learning-rate curve, moving average, and state that survives a kill."""

import math
import os
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rollout.miniature.world import FINISHES, Scene, caption, is_heldout, sample_scene

WORK = Path("work/miniature")  # training state, outside version control
SHIPPED = Path(__file__).parent  # where the finished weights live


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to `peak`, then half a cosine down to 2 % of it at `total_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def low_precision() -> torch.autocast:
    """Autocast to bfloat16 where the CPU has AVX-512; elsewhere it is emulated, slower than float32, which is kept."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.backends.cpu.get_cpu_capability() == "AVX512")


class MovingAverage:
    """An exponential moving average of a module's weights; early on it follows faster, min(decay, (1+n)/(10+n))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module: Any = deepcopy(module).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        rate = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), rate)

    def state_dict(self) -> dict:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Writes the step and every part's `state_dict` by a rename, so that a kill never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial)
    os.replace(partial, path)


def load_state(path: Path, **parts: Any) -> int:
    """Restores the parts saved by `save_state` and returns the step to go on from; 0 when there is no file."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def sample_batch(
    seed: int, step: int, count: int, finish_weights: tuple[float, ...] = (1, 1, 1)
) -> tuple[list[Scene], list[str], torch.Generator]:
    """Training scenes, finishes and a jitter generator that depend on (seed, step) alone; no held-out captions."""
    rng = random.Random(f"{seed}/{step}")
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng)
        if not is_heldout(caption(scene)):
            scenes.append(scene)
    return scenes, rng.choices(FINISHES, finish_weights, k=count), torch.Generator().manual_seed(rng.getrandbits(62))


def replace_folder(finished: Path, target: Path) -> None:
    """Puts a finished folder in the place of `target`; a reader sees the old one or the new one, but for an instant."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(target.name + ".old")
    if target.exists():
        os.replace(target, old)
    os.replace(finished, target)
    if old.exists():
        for path in sorted(old.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        old.rmdir()


def parameter_count(module: nn.Module) -> int:
    """How many numbers a module holds."""
    return sum(p.numel() for p in module.parameters())
