"""open_clip models from a local checkpoint: architecture by name or file, every weight under open_clip's names."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIP
from torch import Tensor

from reward.preprocess import Fit, published_pixels
from reward.weights_file import load_strict, read_weights

_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's own archives keep among the weights; open_clip leaves them out too."""


def load_open_clip(architecture: str, checkpoint: Path | str) -> Any:
    """open_clip's `CLIP` in float32 on the CPU, in evaluation mode.

    Args:
        architecture: a name that open_clip knows, or a `.json` file in the format of its `model_configs/`.
        checkpoint: .safetensors, .bin, .pt or .pth of tensors, flat or under `state_dict`, or OpenAI's TorchScript
            archive (its tensors alone are read); half precision is widened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown architecture, or a checkpoint that is damaged or of another model; lists the names.
    """
    model: Any = CLIP(**_architecture(architecture))
    state = {name: tensor for name, tensor in read_weights(checkpoint).items() if name not in _OPENAI_SIZES}
    load_strict(model, state, f"checkpoint {checkpoint} (architecture {architecture})")
    return model.float().eval()


def image_size(model: Any) -> int:
    """Side in pixels of what the image tower reads."""
    size = model.visual.image_size
    return int(size[0] if isinstance(size, list | tuple) else size)


class OpenClipTowers:
    """`reward.frozen.Towers` over open_clip's `CLIP`, with open_clip's own tokenizer (77 tokens, then cut)."""

    def __init__(self, architecture: str, checkpoint: Path | str, fit: Fit) -> None:
        """Errors as `load_open_clip`."""
        self.module = load_open_clip(architecture, checkpoint)
        self.image_size = image_size(self.module)
        self._fit: Fit = fit
        self._tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=self.module.context_length)

    def image_features(self, images: Tensor) -> Tensor:
        """[B, P] of images [B, 3, H, W] in [-1, 1]."""
        return self.module.encode_image(published_pixels(images, self.image_size, self._fit))

    def text_features(self, prompt: str) -> Tensor:
        """[P]"""
        return self.module.encode_text(self._tokenizer([prompt]).to(self.module.logit_scale.device))[0]


def _architecture(name: str) -> dict[str, Any]:
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"architecture {name} does not exist")
        try:
            settings = json.loads(Path(name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"architecture {name} is not JSON: {error}") from error
        if not isinstance(settings, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= settings.keys():
            raise ValueError(f"architecture {name} is not open_clip's: embed_dim, vision_cfg and text_cfg are wanted")
        return settings
    if name not in open_clip.list_models():
        raise ValueError(
            f"architecture {name!r} is not one of open_clip's; see open_clip.list_models(), or give a .json"
        )
    return copy.deepcopy(open_clip.get_model_config(name))
