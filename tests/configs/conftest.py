"""Shared by the configuration tests: a YAML file from text, and the message of what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from configs import AtelierConfig, ConfigError, load_config


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., AtelierConfig]:
    """load(yaml_text, *overrides) -> configuration, through a file as a user would."""

    def load_text(text: str, *overrides: str) -> AtelierConfig:
        file = tmp_path / "mine.yaml"
        file.write_text(text, encoding="utf-8")
        return load_config(file, overrides)

    return load_text


@pytest.fixture
def refused(load: Callable[..., AtelierConfig], tmp_path: Path) -> Callable[..., str]:
    """refused(yaml_text, *overrides) -> the error's text, with the file's directory taken off."""

    def message(text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return message
