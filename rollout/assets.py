"""Where a model lies: the one that ships with this repository, and the configuration of one in a single file."""

from __future__ import annotations

from pathlib import Path

from configs.model import ModelSection

MINIATURE = "miniature"
SINGLE_FILE = (".safetensors", ".ckpt")
MINIATURE_PIPELINE = Path(__file__).parent / "miniature" / "pipeline"


def pipeline_path(pretrained: str) -> str:
    """The directory behind `model.pretrained`, or the hub id as it is."""
    return str(MINIATURE_PIPELINE) if pretrained == MINIATURE else pretrained


def configuration_place(model: ModelSection) -> str:
    """Directory or hub id of the pipeline's configuration and tokenizers: beside the weights, or `model.config`.

    Raises ValueError for a single file without it.
    """
    path = pipeline_path(model.pretrained)
    if not path.endswith(SINGLE_FILE):
        return path
    if model.config is None:
        raise ValueError(
            f"model.pretrained {path} is a single file: name a directory or hub id with its configuration and "
            "tokenizers in model.config"
        )
    return model.config
