"""Objects in a picture by transformers' Mask2Former (COCO instances), scored as Mask2Former's authors do.

GenEval used mmdet's `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`; `facebook/mask2former-swin-small-coco-instance` is
the same architecture in transformers' format, trained by its authors: scores differ a little from the published ones.
Shapes: Q queries, C classes, h w picture, u v mask logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

from reward.weights_file import folder_or_hub_id
from rollout.geneval.names import geneval_labels
from rollout.geneval.rules import Detection


class Mask2FormerDetector:
    """A frozen detector. Build it with `from_pretrained`."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._processor = processor
        self._labels = geneval_labels(model.config.id2label)

    @classmethod
    def from_pretrained(cls, path: Path | str, device: torch.device | str = "cpu") -> Mask2FormerDetector:
        """Directory or hub id. Raises ValueError when weights or classes of GenEval are missing."""
        folder_or_hub_id(path, "detector")
        model, report = Mask2FormerForUniversalSegmentation.from_pretrained(path, output_loading_info=True)
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{path}: {len(missing)} weights are missing, first {missing[0]}; not a Mask2Former?")
        return cls(model.to(device), AutoImageProcessor.from_pretrained(path), f"mask2former-{Path(path).name}")

    @torch.no_grad()
    def detect(self, image: Image.Image) -> list[Detection]:
        """Every query's best guesses, unfiltered; masks and boxes in the picture's pixels."""
        inputs = self._processor(images=image, return_tensors="pt").to(self._model.device)
        outputs = self._model(**inputs)
        masks = interpolate(outputs.masks_queries_logits, size=inputs["pixel_values"].shape[-2:], mode="bilinear")[0]
        valid = inputs["pixel_mask"][0].bool()  # the rest is padding
        masks = masks[:, : int(valid.any(1).sum()), : int(valid.any(0).sum())]
        return instances(outputs.class_queries_logits[0], masks, (image.height, image.width), self._labels)


def instances(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], labels: Mapping[int, str]
) -> list[Detection]:
    """Detections of class_logits [Q, C + 1] (the last: nothing) and mask_logits [Q, u, v] at `size` (h, w).

    The Q best of all (query, class); score = softmax probability · mean sigmoid of the mask where its logit is above 0.
    Those without any mask, or of classes outside `labels`, are left out.
    """
    queries, classes = class_logits.shape[0], class_logits.shape[1] - 1
    best, index = class_logits.softmax(-1)[:, :-1].flatten().topk(queries)
    masks = interpolate(mask_logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    found = []
    for probability, position in zip(best.tolist(), index.tolist(), strict=True):
        query, number = divmod(position, classes)
        inside = masks[query] > 0
        area = int(inside.sum())
        if area == 0 or number not in labels:
            continue
        certainty = float(masks[query][inside].sigmoid().sum() / (area + 1e-6))
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        found.append(Detection(labels[number], probability * certainty, box, inside.cpu().numpy()))
    return found
