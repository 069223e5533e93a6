"""The colour of a detected object: CLIP zero-shot over ten names, on the object's crop with its background grey.

Shapes: N objects, D width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor

from reward.open_clip_model import image_size, load_open_clip
from rollout.geneval.rules import COLOURS, Detection

BACKGROUND = (0x99, 0x99, 0x99)
TEMPLATES = ("a photo of a {c} {label}", "a photo of a {c}-colored {label}", "a photo of a {c} object")
ARCHITECTURE = "ViT-L-14-quickgelu"
"""OpenAI's weights were trained with QuickGELU."""


class ColourClassifier:
    """A frozen open_clip model. Build it with `from_pretrained`."""

    def __init__(self, model: Any, preprocess: Any, tokenizer: Any, name: str) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self._by_label: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls, path: Path | str, device: torch.device | str = "cpu", architecture: str = ARCHITECTURE
    ) -> ColourClassifier:
        """A weights file of `architecture` (OpenAI's ViT-L-14.pt too), or a folder with open_clip_config.json.

        Raises ValueError for anything else, naming what does not fit.
        """
        place = Path(path)
        if place.is_file():
            model = load_open_clip(architecture, place).to(device)
            preprocess = open_clip.image_transform(image_size(model), is_train=False)  # OpenAI's mean and deviation
            return cls(model, preprocess, open_clip.SimpleTokenizer(), f"open_clip-{place.stem}")
        if not (place / "open_clip_config.json").is_file():
            raise ValueError(f"--clip {path}: neither a weights file nor a folder with open_clip_config.json")
        source = f"local-dir:{place}"
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(source, device=device)
        except (RuntimeError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(f"--clip {path}: not weights of {source}: {reason}") from error
        return cls(model, preprocess, open_clip.get_tokenizer(source), f"open_clip-{place.stem}")

    @torch.no_grad()
    def classify(self, image: Image.Image, detections: Sequence[Detection]) -> list[str]:
        """The colour name of each detection (all of one label) in an RGB picture."""
        if not detections:
            return []
        pixels = torch.stack([self._preprocess(masked_crop(image, detection)) for detection in detections])
        features = self._model.encode_image(pixels.to(self._device()), normalize=True)
        similarity = features @ self._classifier(detections[0].label).T  # [N, 10]
        return [COLOURS[number] for number in similarity.argmax(1).tolist()]

    def _classifier(self, label: str) -> Tensor:
        """[10, D]: the mean of a colour's normalised templates, normalised."""
        if label not in self._by_label:
            texts = [template.format(c=colour, label=label) for colour in COLOURS for template in TEMPLATES]
            features = self._model.encode_text(self._tokenizer(texts).to(self._device()), normalize=True)
            means = features.reshape(len(COLOURS), len(TEMPLATES), -1).mean(1)
            self._by_label[label] = means / means.norm(dim=1, keepdim=True)
        return self._by_label[label]

    def _device(self) -> torch.device:
        return self._model.logit_scale.device


def masked_crop(image: Image.Image, detection: Detection) -> Image.Image:
    """The box of the picture, everything outside the object's mask #999999."""
    if detection.mask is not None:
        blank = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image.convert("RGB"), blank, Image.fromarray(detection.mask))
    x0, y0, x1, y1 = detection.box
    return image.crop((int(x0), int(y0), int(x1), int(y1)))
