"""Scorers: pictures and prompts (and timesteps) in, float32 scores out. Imports only `configs` and third-party."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reward.base import Scorer
from reward.step_aware import WEIGHTS
from reward.step_aware_scorer import StepAwareScorer

MINIATURE = Path(__file__).resolve().parent.parent / "rollout" / "miniature" / "spm"
"""Data of the embedded preference model: CLIP's config and tokenizer, and its weights."""


def step_aware_files(clip: str, checkpoint: str | None) -> tuple[Path | str, Path | str | None]:
    """CLIP and checkpoint; the clip named `miniature` brings its own checkpoint, unless another is given."""
    if clip == "miniature":
        return MINIATURE, checkpoint or MINIATURE / WEIGHTS
    return clip, checkpoint


def _step_aware(settings: Any) -> Scorer:
    return StepAwareScorer.from_pretrained(*step_aware_files(settings.clip, settings.checkpoint))


# Each factory imports its own file: open_clip and HF's BLIP are loaded only where they are used.


def _pickscore(settings: Any) -> Scorer:
    from reward.pickscore import PickScore

    return PickScore(settings.clip, settings.tokenizer)


def _hps(settings: Any) -> Scorer:
    from reward.hps import HumanPreferenceScore

    return HumanPreferenceScore(settings.version, settings.checkpoint, settings.architecture)


def _imagereward(settings: Any) -> Scorer:
    from reward.imagereward import ImageReward

    return ImageReward(settings.checkpoint, settings.tokenizer)


def _aesthetic(settings: Any) -> Scorer:
    from reward.aesthetic import AestheticPredictor

    return AestheticPredictor(settings.checkpoint, settings.head, settings.architecture)


def _clip_score(settings: Any) -> Scorer:
    from reward.clip_score import ClipScore

    return ClipScore(settings.clip)


def _mixture(settings: Any) -> Scorer:
    from reward.mixture import Mixture, Part

    return Mixture([Part(build_scorer(p.scorer), p.weight, p.centre, p.spread) for p in settings.parts])


def _imported(settings: Any) -> Scorer:
    from reward.imported import import_scorer

    return import_scorer(settings.target, settings.options)


def _remote(settings: Any) -> Scorer:
    from reward.remote import RemoteScorer

    return RemoteScorer(
        settings.url,
        timeout_sec=settings.timeout_sec,
        retries=settings.retries,
        backoff_sec=settings.backoff_sec,
        batch_size=settings.batch_size,
    )


SCORERS: dict[str, Callable[[Any], Scorer]] = {
    "step_aware": _step_aware,
    "pickscore": _pickscore,
    "hps": _hps,
    "imagereward": _imagereward,
    "aesthetic": _aesthetic,
    "clip_score": _clip_score,
    "mixture": _mixture,
    "import": _imported,
    "remote": _remote,
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
