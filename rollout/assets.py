"""Where the model that ships with this repository lies, and what `miniature` means in a configuration."""

from __future__ import annotations

from pathlib import Path

from configs.rollout import StepAwareScorer

MINIATURE = "miniature"
MINIATURE_DIR = Path(__file__).parent / "miniature"
MINIATURE_PIPELINE = MINIATURE_DIR / "pipeline"
MINIATURE_SPM = MINIATURE_DIR / "spm"
MINIATURE_SPM_CHECKPOINT = MINIATURE_SPM / "spm.safetensors"


def pipeline_path(pretrained: str) -> str:
    """The directory behind `model.pretrained`, or the hub id as it is."""
    return str(MINIATURE_PIPELINE) if pretrained == MINIATURE else pretrained


def scorer_settings(settings: StepAwareScorer) -> StepAwareScorer:
    """The scorer's settings with `miniature` replaced by the paths of the bundled preference model."""
    if settings.clip != MINIATURE:
        return settings
    checkpoint = settings.checkpoint or str(MINIATURE_SPM_CHECKPOINT)
    return settings.model_copy(update={"clip": str(MINIATURE_SPM), "checkpoint": checkpoint})
