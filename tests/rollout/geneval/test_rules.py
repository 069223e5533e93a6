"""The rule engine on hand-made detections: six tasks, each right and wrong, and the boundaries of every threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rollout.geneval.names import OBJECTS, geneval_labels
from rollout.geneval.rules import Detection, Verdict, judge, kept, relations

LEFT, RIGHT = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 60.0, 10.0)


def seen(label: str, score: float = 0.95, box: tuple[float, float, float, float] = LEFT) -> Detection:
    return Detection(label, score, box)


def no_colours(found: Sequence[Detection]) -> list[str]:
    raise AssertionError("this task has no colours")


def verdict(
    rule: dict[str, Any], detections: Sequence[Detection], colours: dict[str, list[str]] | None = None
) -> Verdict:
    if colours is None:
        return judge(rule, detections, no_colours)
    return judge(rule, detections, lambda found: colours[found[0].label][: len(found)])


SINGLE = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
TWO = {"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "sports ball", "count": 1}]}
COUNT = {
    "tag": "counting",
    "include": [{"class": "clock", "count": 2}],
    "exclude": [{"class": "clock", "count": 3}],
}
COLOUR = {"tag": "colors", "include": [{"class": "fire hydrant", "count": 1, "color": "blue"}]}
POSITION = {
    "tag": "position",
    "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
}
BINDING = {
    "tag": "color_attr",
    "include": [
        {"class": "wine glass", "count": 1, "color": "purple"},
        {"class": "apple", "count": 1, "color": "black"},
    ],
}


def test_single_object() -> None:
    assert verdict(SINGLE, [seen("bench", 0.31), seen("dog")]) == Verdict(True)
    assert verdict(SINGLE, [seen("dog")]) == Verdict(False, ("1 bench expected, 0 found",))
    assert verdict(SINGLE, [seen("bench"), seen("bench")]).correct, "more than asked for is not wrong here"


@pytest.mark.parametrize(("score", "correct"), [(0.3, False), (0.3001, True)])
def test_the_detection_threshold_must_be_passed(score: float, correct: bool) -> None:
    assert verdict(SINGLE, [seen("bench", score)]).correct is correct


def test_two_objects() -> None:
    assert verdict(TWO, [seen("bench", 0.4), seen("sports ball", 0.5)]).correct
    assert verdict(TWO, [seen("bench")]).reasons == ("1 sports ball expected, 0 found",)
    assert len(verdict(TWO, []).reasons) == 2


def test_counting_is_exact() -> None:
    assert verdict(COUNT, [seen("clock")] * 2).correct
    assert verdict(COUNT, [seen("clock")]).reasons == ("2 clock expected, 1 found",)
    assert verdict(COUNT, [seen("clock")] * 3).reasons == ("fewer than 3 clock expected, 3 found",)


@pytest.mark.parametrize(("score", "correct"), [(0.9, True), (0.9001, False), (0.5, True)])
def test_counting_has_a_higher_threshold(score: float, correct: bool) -> None:
    assert verdict(COUNT, [seen("clock"), seen("clock"), seen("clock", score)]).correct is correct


def test_colours() -> None:
    assert verdict(COLOUR, [seen("fire hydrant")], {"fire hydrant": ["blue"]}).correct
    wrong = verdict(COLOUR, [seen("fire hydrant")], {"fire hydrant": ["red"]})
    assert wrong.reasons == ("1 blue fire hydrant expected, found: red",)
    assert not verdict(COLOUR, []).correct, "a missing object has no colour to ask for"


def test_only_the_most_certain_object_is_asked_for_its_colour() -> None:
    asked: list[float] = []

    def colours(found: Sequence[Detection]) -> list[str]:
        asked.extend(one.score for one in found)
        return ["blue" if one.score == 0.5 else "red" for one in found]

    assert not judge(COLOUR, [seen("fire hydrant", 0.5), seen("fire hydrant", 0.8)], colours).correct
    assert asked == [0.8]


def test_position() -> None:
    assert verdict(POSITION, [seen("teddy bear", box=LEFT), seen("dog", box=RIGHT)]).correct
    wrong = verdict(POSITION, [seen("teddy bear", box=RIGHT), seen("dog", box=LEFT)])
    assert wrong.reasons == ("dog expected right of teddy bear, found left of",)
    same = verdict(POSITION, [seen("teddy bear"), seen("dog")])
    assert same.reasons == ("dog expected right of teddy bear, found neither",)
    absent = verdict(POSITION, [seen("dog", box=RIGHT)])
    assert absent.reasons == (
        "1 teddy bear expected, 0 found",
        "dog expected right of an object that is not there",
    )


def test_attribute_binding() -> None:
    both = [seen("wine glass"), seen("apple")]
    assert verdict(BINDING, both, {"wine glass": ["purple"], "apple": ["black"]}).correct
    exchanged = verdict(BINDING, both, {"wine glass": ["black"], "apple": ["purple"]})
    assert exchanged.reasons == (
        "1 purple wine glass expected, found: black",
        "1 black apple expected, found: purple",
    )
    assert not verdict(BINDING, both[:1], {"wine glass": ["purple"]}).correct


def test_the_most_certain_sixteen_of_a_class_are_kept_in_order() -> None:
    scores = [0.35 + 0.01 * n for n in range(20)]
    found = kept([seen("clock", score) for score in scores] + [seen("dog", 0.31)], "two_object")
    assert [one.score for one in found["clock"]] == sorted(scores, reverse=True)[:16]
    assert len(found["dog"]) == 1


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # Two boxes of 10 by 10: centres must differ by more than 0.1 * 20 = 2 pixels along an axis.
        ((2.0, 0.0, 12.0, 10.0), set()),
        ((3.0, 0.0, 13.0, 10.0), set()),  # (3 - 2) / 3 = 0.33, below 0.5
        ((4.0, 0.0, 14.0, 10.0), set()),  # (4 - 2) / 4 = 0.5: it must be passed
        ((4.1, 0.0, 14.1, 10.0), {"right of"}),  # 2.1 / 4.1 = 0.512
        ((-4.1, 0.0, 5.9, 10.0), {"left of"}),
        ((0.0, -4.1, 10.0, 5.9), {"above"}),
        ((0.0, 4.1, 10.0, 14.1), {"below"}),
        ((40.0, 40.0, 50.0, 50.0), {"right of", "below"}),  # 38 / (40 √2) = 0.672 along both
        ((-40.0, -10.0, -30.0, 0.0), {"left of"}),  # 38 / √1700 = 0.92; 8 / √1700 = 0.19
    ],
)
def test_relations_by_hand(box: tuple[float, float, float, float], expected: set[str]) -> None:
    assert relations(box, LEFT) == expected


def test_sizes_widen_the_dead_zone() -> None:
    """Box 40 wide against one 10 wide: 0.1 * 50 = 5 pixels; offset 15: (15 - 5) / 15 = 0.67."""
    assert relations((0.0, 0.0, 40.0, 10.0), LEFT) == {"right of"}
    assert relations((-5.0, 0.0, 35.0, 10.0), LEFT) == set(), "offset 10: (10 - 5) / 10 = 0.5"


def test_names_of_detectors_become_genevals() -> None:
    plain = dict(enumerate(OBJECTS))
    voc = {
        "motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant",
        "dining table": "diningtable", "tv": "tvmonitor", "computer mouse": "mouse", "tv remote": "remote",
        "computer keyboard": "keyboard",
    }  # fmt: skip
    assert len(OBJECTS) == 80 and geneval_labels(plain) == plain
    assert geneval_labels({n: voc.get(name, name) for n, name in plain.items()}) == plain
    assert geneval_labels({**plain, 80: "banner"}) == plain
    with pytest.raises(ValueError, match="lacks 1 of GenEval's 80 classes: toaster"):
        geneval_labels({n: name for n, name in plain.items() if name != "toaster"})
