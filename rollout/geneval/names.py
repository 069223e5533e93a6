"""COCO's 80 classes under GenEval's names, and what detectors call them."""

from __future__ import annotations

from collections.abc import Mapping

# fmt: off
OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)
# fmt: on
ALIASES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "hair dryer": "hair drier",
    # VOC's spellings, which some COCO checkpoints keep
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
"""A detector's name -> GenEval's."""


def geneval_labels(id2label: Mapping[int, str]) -> dict[int, str]:
    """Class number -> GenEval's name, for the classes that GenEval has.

    Raises ValueError naming the classes that a detector lacks: their prompts could never be right.
    """
    labels = {}
    for number, name in id2label.items():
        plain = name.strip().lower().replace("_", " ")
        plain = ALIASES.get(plain, plain)
        if plain in OBJECTS:
            labels[int(number)] = plain
    if missing := [name for name in OBJECTS if name not in labels.values()]:
        raise ValueError(f"the detector lacks {len(missing)} of GenEval's 80 classes: {', '.join(missing[:5])}")
    return labels
