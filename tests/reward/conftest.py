"""Fixtures over small CLIP models of both sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reward.step_aware import StepAwarePreferenceModel
from tests.tiny_clip import SIZES, write_clip


@pytest.fixture(scope="session")
def clip_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {size: write_clip(tmp_path_factory.mktemp(size), size) for size in SIZES}


@pytest.fixture(params=sorted(SIZES))
def clip_dir(request: pytest.FixtureRequest, clip_dirs: dict[str, Path]) -> Path:
    """Each of the two CLIPs in turn."""
    return clip_dirs[request.param]


@pytest.fixture
def small_clip(clip_dirs: dict[str, Path]) -> Path:
    return clip_dirs["small"]


@pytest.fixture
def conditioned() -> Callable[[Path], StepAwarePreferenceModel]:
    """Makes a model whose time-conditional weights are far from their start."""

    def make(clip_dir: Path) -> StepAwarePreferenceModel:
        torch.manual_seed(5)
        model = StepAwarePreferenceModel.from_pretrained(clip_dir)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "adaLN_modulation" in name or "t_embedder" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def pictures() -> torch.Tensor:
    """float32 [5, 3, 64, 64] in [-1, 1]"""
    return torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def timesteps() -> torch.Tensor:
    return torch.tensor([0, 251, 501, 701, 951])
