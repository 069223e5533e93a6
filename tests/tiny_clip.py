"""Small CLIP models of random weights in HF's own format: two sizes, each with its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

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
