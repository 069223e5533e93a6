"""Preference models for SPO's ablation: one that is not told the timestep, and one that never saw a prediction.

The plain one is `rollout.miniature.train_clip`'s (a CLIP trained on clean renders), made here once and kept in WORK; it
takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from reward import MINIATURE, Scorer
from reward.step_aware import WEIGHTS, StepAwarePreferenceModel
from reward.step_aware_scorer import StepAwareScorer, load_tokenizer
from rollout.miniature.tokens import write_tokenizer
from rollout.miniature.train_clip import SEED, STEPS, build_clip, train_clean
from rollout.miniature.training import load_state
from tests.benchmarks.ablations.cells import SPM

WORK = Path("runs/ablations/plain")


class WithoutTime:
    """A step-aware scorer that is told t = 0 whatever the timestep is."""

    reads = "pixels"

    def __init__(self, scorer: StepAwareScorer) -> None:
        self.name = f"{scorer.name}-t0"
        self._scorer = scorer

    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        return self._scorer.score(images, prompts, torch.zeros_like(timesteps))

    def to(self, device: torch.device | str) -> WithoutTime:
        self._scorer.to(device)
        return self


def without_time() -> Scorer:
    """The cells' step-aware weights, always told t = 0."""
    return WithoutTime(StepAwareScorer.from_pretrained(SPM, SPM / WEIGHTS))


def plain() -> Scorer:
    """A CLIP trained on clean pictures alone; its modulation is at the start, so that time changes nothing.

    Raises FileNotFoundError where `train_plain` has not made it.
    """
    state = WORK / "clip.pt"
    if not state.is_file():
        raise FileNotFoundError(f"{state}: the plain preference model is made by tests.benchmarks.ablations")
    clip = build_clip(CLIPTokenizer.from_pretrained(MINIATURE))
    load_state(state, clip=clip)
    model = StepAwarePreferenceModel(clip)
    return StepAwareScorer(model, load_tokenizer(MINIATURE, model), f"plain-{STEPS}-seed{SEED}")


def train_plain() -> None:
    """Make what `plain` loads; goes on where it was stopped, returns at once where it is finished."""
    torch.manual_seed(SEED)
    tokenizer = write_tokenizer(WORK / "tokenizer")
    train_clean(build_clip(tokenizer), tokenizer, STEPS, WORK / "clip.pt")
