"""Torch-free configuration: schema, YAML presets, overrides, documentation."""

from configs.schema import AtelierConfig

__all__ = ["AtelierConfig"]
