"""The prompts' rules: which detections count, and whether they satisfy a prompt. Pure: no model, no picture.

Thresholds are the published ones. Boxes are (x0, y0, x1, y1) in pixels, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

THRESHOLD = 0.3
"""A detection counts when its score is above this ..."""
COUNTING_THRESHOLD = 0.9
"""... or, for counting prompts, above this."""
MAX_OBJECTS = 16
"""Most detections kept of one class, the most certain ones."""
POSITION_THRESHOLD = 0.1
"""Share of the two objects' summed sizes by which centres must differ before a direction is read."""
COMPONENT = 0.5
"""A direction holds where its component of the shrunk offset, over the raw offset's length, passes this."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detection:
    """One object that a detector found."""

    label: str
    """A name of `names.OBJECTS`."""
    score: float
    box: Box
    mask: np.ndarray | None = None
    """bool [h, w] of the picture; None: the whole box."""


ColourOf = Callable[[Sequence[Detection]], list[str]]
"""The colour name of each of some detections, all of one label."""


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is right, and why not."""

    correct: bool
    reasons: tuple[str, ...] = ()


def kept(detections: Sequence[Detection], task: str) -> dict[str, list[Detection]]:
    """By label, the most certain first: those above the task's threshold, at most `MAX_OBJECTS`. (Overlap is no reason
    to drop one: the published suppression threshold is 1.)"""
    threshold = COUNTING_THRESHOLD if task == "counting" else THRESHOLD
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold and len(found.get(detection.label, ())) < MAX_OBJECTS:
            found.setdefault(detection.label, []).append(detection)
    return found


def judge(rule: Mapping[str, Any], detections: Sequence[Detection], colour_of: ColourOf) -> Verdict:
    """Check one picture's detections against one prompt's rule (`tasks.read_rules`).

    Every `include` clause must hold, for the `count` most certain objects of its class; no `exclude` clause may, which
    holds when at least `count` are there. `position` is (relation, number of an earlier clause).
    """
    objects = kept(detections, rule["tag"])
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for clause in rule["include"]:
        label, count = clause["class"], clause["count"]
        found = objects.get(label, [])[:count]
        problem = _clause_problem(clause, found, groups, colour_of)
        groups.append(None if problem else found)
        if problem:
            reasons.append(problem)
    for clause in rule.get("exclude", ()):
        number = len(objects.get(clause["class"], ()))
        if number >= clause["count"]:
            reasons.append(f"fewer than {clause['count']} {clause['class']} expected, {number} found")
    return Verdict(not reasons, tuple(reasons))


def relations(box: Box, target: Box) -> set[str]:
    """Where `box` lies, seen from `target`: any of `RELATIONS`, none when the centres are too near."""
    offset = [(a + b) / 2 - (c + d) / 2 for a, b, c, d in _axes(box, target)]
    sizes = [abs(b - a) + abs(d - c) for a, b, c, d in _axes(box, target)]
    shrunk = [
        math.copysign(max(0.0, abs(o) - POSITION_THRESHOLD * size), o) for o, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(component) < 1e-3 for component in shrunk):  # pixels
        return set()
    x, y = (component / math.hypot(*offset) for component in shrunk)
    holds = {"left of": x < -COMPONENT, "right of": x > COMPONENT, "above": y < -COMPONENT, "below": y > COMPONENT}
    return {relation for relation, true in holds.items() if true}


def _axes(box: Box, target: Box) -> tuple[Box, Box]:
    """(start, end) of both boxes along x, and along y."""
    return (box[0], box[2], target[0], target[2]), (box[1], box[3], target[1], target[3])


def _clause_problem(
    clause: Mapping[str, Any],
    found: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    colour_of: ColourOf,
) -> str | None:
    label, count = clause["class"], clause["count"]
    if len(found) < count:
        return f"{count} {label} expected, {len(found)} found"
    if "color" in clause:
        colours = colour_of(found)
        if colours.count(clause["color"]) < count:
            return f"{count} {clause['color']} {label} expected, found: {', '.join(colours)}"
    if "position" in clause:
        relation, number = clause["position"]
        target = groups[number]
        if target is None:
            return f"{label} expected {relation} an object that is not there"
        for one in found:
            for other in target:
                if relation not in (seen := relations(one.box, other.box)):
                    return f"{label} expected {relation} {other.label}, found {' and '.join(sorted(seen)) or 'neither'}"
    return None
