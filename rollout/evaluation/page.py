"""evaluate.html: the candidates side by side on the same prompts and seeds, with the figures; one file, offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rollout.evaluation.embedding import build_page, data_uri
from rollout.evaluation.report import notes


def comparison_page(found: Mapping[str, Any], images: Mapping[str, np.ndarray], count: int) -> str:
    """The page. found: `report.results`; images: candidate -> uint8 [N, h, w, 3]; shows the first `count`."""
    shown = min(count, len(found["prompts"]))
    pictures = [
        {
            "prompt": found["prompts"][n],
            "seed": found["seeds"][n],
            "images": {name: data_uri(pictures[n]) for name, pictures in images.items()},
            "scores": {name: _scores(found, name, n) for name in images},
        }
        for n in range(shown)
    ]
    data = {
        "notes": notes(found),
        "candidates": list(images),
        "metrics": {
            name: {"kind": metric["kind"], "candidates": metric["candidates"]}
            for name, metric in found["metrics"].items()
        },
        "pictures": pictures,
        "total": len(found["prompts"]),
    }
    return build_page("compare", data)


def _scores(found: Mapping[str, Any], candidate: str, number: int) -> dict[str, float]:
    """Of the scorers only: measures are many, and mostly yes or no."""
    return {
        name: values[number]
        for name, values in found["per_picture"][candidate].items()
        if found["metrics"][name]["kind"] == "score"
    }
