"""Small CLIP models of random weights in HF's own format: two sizes, each with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from reward.step_aware import StepAwarePreferenceModel
from tests.tiny import MAX_TOKENS, tiny_tokenizer

SIZES = {
    "small": {"width": 48, "heads": 4, "layers": 2, "image_size": 64, "patch_size": 16, "hidden_act": "quick_gelu"},
    "large": {"width": 64, "heads": 8, "layers": 3, "image_size": 56, "patch_size": 14, "hidden_act": "gelu"},
}


def write_clip(folder: Path, size: str) -> Path:
    """A CLIP and its tokenizer in `folder`; returns it."""
    torch.manual_seed(len(size))
    tokenizer, s = tiny_tokenizer(folder), SIZES[size]
    shared = {"num_hidden_layers": s["layers"], "num_attention_heads": s["heads"], "hidden_act": s["hidden_act"]}
    text = {
        **shared, "hidden_size": 32, "intermediate_size": 64, "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        **shared, "hidden_size": s["width"], "intermediate_size": 2 * s["width"], "image_size": s["image_size"],
        "patch_size": s["patch_size"],
    }  # fmt: skip
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    with torch.no_grad():  # HF starts biases at 0 and norms at 1, which would hide mistakes with either
        for parameter in clip.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    clip.save_pretrained(folder)
    return folder


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
