"""CLIP in HF's format as two towers, read the way HF's processor prepares pictures and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from reward.preprocess import published_pixels
from reward.step_aware import load_clip
from reward.step_aware_scorer import fitting_tokenizer, tokenize
from reward.weights_file import weights_version


class HfTowers:
    """`reward.frozen.Towers` over HF's `CLIPModel`."""

    def __init__(self, clip_dir: Path | str, tokenizer_dir: Path | str | None = None) -> None:
        """Load both, in float32, on the CPU.

        Raises ValueError where weights are truncated, incomplete or of another shape, or the tokenizer does not fit;
        OSError where there is no such model.
        """
        self.module: Any = load_clip(clip_dir).float()
        self.version = hf_version(clip_dir)
        self._tokenizer = fitting_tokenizer(tokenizer_dir or clip_dir, self.module.config.text_config)
        self.image_size = int(self.module.config.vision_config.image_size)

    def image_features(self, images: Tensor) -> Tensor:
        """[B, P] of images [B, 3, H, W] in [-1, 1]."""
        pixels = published_pixels(images, self.image_size, "crop_floor")
        return self.module.visual_projection(self.module.vision_model(pixel_values=pixels).pooler_output)

    def text_features(self, prompt: str) -> Tensor:
        """[P]; longer prompts are cut at the model's length, as the processor does."""
        ids = tokenize(self._tokenizer, [prompt]).to(self.module.logit_scale.device)
        return self.module.text_projection(self.module.text_model(input_ids=ids).pooler_output)[0]


def hf_version(folder: Path | str) -> str:
    """8 hex digits of the weights in a directory; `hub` where the model came from the hub by id."""
    files = sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("pytorch_model*.bin"))
    return weights_version(*files) if files else "hub"
