"""Torch-free configuration: schema, YAML presets, overrides, checks, placement, documentation."""

from configs.errors import ConfigError
from configs.load import build_config, dump_config, load_config, preset_names, write_resolved
from configs.schema import AtelierConfig

__all__ = [
    "AtelierConfig",
    "ConfigError",
    "build_config",
    "dump_config",
    "load_config",
    "preset_names",
    "write_resolved",
]
