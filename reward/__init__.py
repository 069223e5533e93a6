"""Scorers: pictures and prompts (and timesteps) in, float32 scores out. Imports only `configs` and third-party."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reward.base import Scorer
from reward.step_aware_scorer import StepAwareScorer

MINIATURE = Path(__file__).resolve().parent.parent / "rollout" / "miniature" / "spm"
"""Data of the embedded preference model: CLIP's config and tokenizer, and `step_aware.safetensors`."""


def _step_aware(settings: Any) -> Scorer:
    """From `clip` and `checkpoint`. The clip named `miniature` brings its own checkpoint, unless another is given."""
    clip, checkpoint = settings.clip, settings.checkpoint
    if clip == "miniature":
        clip, checkpoint = MINIATURE, checkpoint or MINIATURE / "step_aware.safetensors"
    return StepAwareScorer.from_pretrained(clip, checkpoint)


SCORERS: dict[str, Callable[[Any], Scorer]] = {
    "step_aware": _step_aware,
}
"""Type name in the configuration → factory taking that configuration section."""


def build_scorer(settings: Any, device: torch.device | str = "cpu") -> Scorer:
    """The scorer that a configuration section (its `type` and that type's fields) asks for, on `device`.

    Raises:
        ValueError: no such type; lists the known ones. Also whatever loading the scorer raises.
    """
    if settings.type not in SCORERS:
        raise ValueError(f"scorer type {settings.type!r} is unknown; known: {', '.join(sorted(SCORERS))}")
    return SCORERS[settings.type](settings).to(device)


__all__ = ["SCORERS", "Scorer", "StepAwareScorer", "build_scorer"]
