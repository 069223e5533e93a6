"""Where the diffusion model that ships with this repository lies."""

from __future__ import annotations

from pathlib import Path

MINIATURE = "miniature"
MINIATURE_PIPELINE = Path(__file__).parent / "miniature" / "pipeline"


def pipeline_path(pretrained: str) -> str:
    """The directory behind `model.pretrained`, or the hub id as it is."""
    return str(MINIATURE_PIPELINE) if pretrained == MINIATURE else pretrained
