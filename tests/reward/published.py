"""Small checkpoints of the published scorers, in their real layouts and under their real names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cube", "dog", "blue", "##s", "and", "##er"]
ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def stir(module: nn.Module) -> None:
    """Biases start at 0 and norms at 1, which would hide mistakes with either."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def write_open_clip(
    folder: Path, *, nested: bool, quick_gelu: bool = False, architecture: dict[str, Any] = ARCHITECTURE
) -> tuple[str, Path]:
    """architecture.json and checkpoint.pt, under `state_dict` as HPS's; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**architecture, "quick_gelu": quick_gelu}
    (folder / "architecture.json").write_text(json.dumps(settings))
    torch.manual_seed(3)
    model = CLIP(**settings)
    stir(model)
    state = model.state_dict()
    torch.save({"epoch": 1, "name": "x", "state_dict": state} if nested else state, folder / "checkpoint.pt")
    return str(folder / "architecture.json"), folder / "checkpoint.pt"


def plain_open_clip(architecture: str, checkpoint: Path) -> CLIP:
    """The bare backbone, through open_clip alone."""
    model = CLIP(**json.loads(Path(architecture).read_text()))
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state.get("state_dict", state))
    return model.eval()


def open_clip_tokens(prompts: list[str]) -> Tensor:
    return open_clip.get_tokenizer("ViT-H-14")(prompts)


def head_state(width: int, hidden: tuple[int, ...] = (16, 12, 8, 6)) -> dict[str, Tensor]:
    widths = (width, *hidden, 1)
    state = {}
    for at, (inner, outer) in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):
        state[f"layers.{at}.weight"] = torch.randn(outer, inner) / inner**0.5
        state[f"layers.{at}.bias"] = torch.randn(outer)
    return state


def by_hand(state: dict[str, Tensor], features: Tensor, prefix: str = "") -> Tensor:
    """The head in float64."""
    x = features.double()
    for at in (0, 2, 4, 6, 7):
        x = x @ state[f"{prefix}layers.{at}.weight"].double().T + state[f"{prefix}layers.{at}.bias"].double()
    return x[:, 0]


@dataclass(frozen=True)
class BlipSize:
    """Sizes of ImageReward's two towers and head."""

    image: int = 32
    patch: int = 8
    vision: int = 128
    vision_depth: int = 2
    text: int = 64
    text_depth: int = 2
    inner: int = 96
    vocabulary: int = len(WORDS) + 2
    positions: int = 40
    head: tuple[int, ...] = (16, 12, 8, 6)


def vit(size: BlipSize = BlipSize()) -> VisionTransformer:
    """timm's ViT, whose names and mathematics BLIP's visual encoder has."""
    return VisionTransformer(
        img_size=size.image, patch_size=size.patch, embed_dim=size.vision, depth=size.vision_depth,
        num_heads=size.vision // 64, num_classes=0, global_pool="token",
    )  # fmt: skip


def bert(size: BlipSize = BlipSize()) -> BertModel:
    config = BertConfig(
        vocab_size=size.vocabulary, hidden_size=size.text, num_hidden_layers=size.text_depth,
        num_attention_heads=size.text // 64, intermediate_size=size.inner, max_position_embeddings=size.positions,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def write_imagereward(folder: Path, size: BlipSize = BlipSize()) -> tuple[Path, Path]:
    """ImageReward.pt and a folder with BERT's vocabulary; returns both."""
    torch.manual_seed(4)
    picture, text, width = vit(size), bert(size), size.text
    for module in (picture, text):
        stir(module)
    state = {f"blip.visual_encoder.{name}": tensor for name, tensor in picture.state_dict().items()}
    state |= {f"blip.text_encoder.{name}": tensor for name, tensor in text.state_dict().items()}
    del state["blip.text_encoder.embeddings.token_type_embeddings.weight"]  # BLIP's BERT has none
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(size.positions)[None]
    for layer in range(size.text_depth):
        prefix = f"blip.text_encoder.encoder.layer.{layer}.crossattention"
        shapes = {"self.query": width, "self.key": size.vision, "self.value": size.vision, "output.dense": width}
        for name, inner in shapes.items():
            state[f"{prefix}.{name}.weight"] = torch.randn(width, inner) / inner**0.5
            state[f"{prefix}.{name}.bias"] = torch.randn(width) / 4
        state[f"{prefix}.output.LayerNorm.weight"] = torch.rand(width) + 0.5
        state[f"{prefix}.output.LayerNorm.bias"] = torch.randn(width) / 4
    for part, inner in (("vision", size.vision), ("text", width)):  # of BLIP's pretraining, left in the file
        state |= {f"blip.{part}_proj.weight": torch.randn(256, inner), f"blip.{part}_proj.bias": torch.randn(256)}
    state |= {f"mlp.{name}": tensor for name, tensor in head_state(width, size.head).items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder / "ImageReward.pt", folder
