"""GenEval scores of pictures that are on disk:

    python -m rollout.evaluate --prompts geneval_metadata.jsonl --repeats 4 --scorers --lora LORA --out OUT ...
    python -m rollout.geneval OUT/images/base OUT/images/LORA --metadata geneval_metadata.jsonl \\
        --detector DIR --clip FILE --out geneval.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from reward.images import decode_image
from rollout.evaluation.pictures import write_json
from rollout.geneval import rules
from rollout.geneval.colours import ColourClassifier
from rollout.geneval.detector import Mask2FormerDetector
from rollout.geneval.rules import TASKS, Detection, judge
from rollout.geneval.tasks import Judged, Rule, TaskScores, pictures, read_rules, scores


class Detector(Protocol):
    """What finds objects."""

    def detect(self, image: Image.Image) -> list[Detection]: ...


class Colours(Protocol):
    """What names their colours."""

    def classify(self, image: Image.Image, detections: Sequence[Detection]) -> list[str]: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 scored, 1 refused, 2 wrong usage."""
    options = _parse(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        known = read_rules(options.metadata) if options.metadata else None
        todo = {folder: list(pictures(folder, known)) for folder in options.images}
        detector = Mask2FormerDetector.from_pretrained(options.detector, device)
        colours = ColourClassifier.from_pretrained(options.clip, device)
        judged = {folder.name: judge_all(items, detector, colours) for folder, items in todo.items()}
        found = {name: scores(all_of) for name, all_of in judged.items()}
        if options.out is not None:
            write_json(options.out, as_json(judged, found, detector.name, colours.name))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(found))
    return 0


def judge_all(items: Sequence[tuple[Path, Rule]], detector: Detector, colours: Colours) -> list[Judged]:
    """Judge pictures one by one. Raises ValueError naming a file that is no readable picture."""
    judged = []
    for file, rule in items:
        image = decode_image(file)
        verdict = judge(rule, detector.detect(image), partial(colours.classify, image))
        judged.append(Judged(file, rule, verdict))
    return judged


def as_json(judged: dict[str, list[Judged]], found: dict[str, TaskScores], detector: str, clip: str) -> dict[str, Any]:
    """Scores with their settings, and every picture's verdict."""
    return {
        "detector": detector,
        "colours": clip,
        "thresholds": {
            "detection": rules.THRESHOLD,
            "counting": rules.COUNTING_THRESHOLD,
            "max_objects": rules.MAX_OBJECTS,
            "position": rules.POSITION_THRESHOLD,
        },
        "models": {
            name: {
                "overall": result.overall,
                "tasks": {
                    task: {"mean": i.mean, "low": max(0.0, i.low), "high": min(1.0, i.high), "prompts": i.n}
                    for task, i in result.tasks.items()
                },
                "pictures": [
                    {
                        "file": str(one.file),
                        "prompt": one.rule["prompt"],
                        "task": one.rule["tag"],
                        "correct": one.verdict.correct,
                        "reasons": list(one.verdict.reasons),
                    }
                    for one in judged[name]
                ],
            }
            for name, result in found.items()
        },
    }


def table(found: dict[str, TaskScores]) -> str:
    """One line a task, one column a model."""
    width = max(24, *(len(name) + 2 for name in found))
    lines = ["".join(["task".ljust(16), *(name.rjust(width) for name in found)])]
    for task in TASKS:
        cells = []
        for result in found.values():
            i = result.tasks.get(task)
            cells.append("-" if i is None else f"{i.mean:.4f} [{max(0.0, i.low):.3f}, {min(1.0, i.high):.3f}]")
        lines.append("".join([task.ljust(16), *(cell.rjust(width) for cell in cells)]))
    overall = ["-" if result.overall is None else f"{result.overall:.4f}" for result in found.values()]
    lines.append("".join(["overall".ljust(16), *(cell.rjust(width) for cell in overall)]))
    if any(result.overall is None for result in found.values()):
        lines.append("overall needs pictures of all six tasks")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rollout.geneval", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="folders, one a model: OUT/images/<model>, or GenEval's layout")
    add("--metadata", type=Path, help="GenEval's prompts with their rules (.jsonl), in the order of the pictures")
    add("--detector", required=True, help="Mask2Former for COCO instances in transformers' format")
    add("--clip", required=True, help="OpenAI's ViT-L/14 weights file, or a folder with open_clip_config.json")
    add("--out", type=Path, metavar="FILE", help="also write JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
