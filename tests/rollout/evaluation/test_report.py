"""What the console says of an evaluation: the table, the warnings, how the pictures were sampled."""

from __future__ import annotations

from typing import Any

from rollout.evaluation.lora import BASE, Candidate
from rollout.evaluation.report import notes, results, table
from rollout.evaluation.scoring import Scores

PROMPTS = ["a", "b", "a", "b"]
SETTINGS = {
    "base": "b", "base_fingerprint": "f", "sampler": "ddim", "steps": 20, "guidance": 5.0, "eta": 1.0, "seed": 5,
}  # fmt: skip
BEFORE = Scores({"mixture-of-a-long-name": [1.5, 1.5, 1.5, 1.5]}, {"judge/crisp": [0.0, 1.0, 0.0, 1.0]}, {"vendi": 2.0})
AFTER = Scores({"mixture-of-a-long-name": [2.5, 1.5, 2.5, 3.5]}, {"judge/crisp": [1.0, 1.0, 1.0, 1.0]}, {"vendi": 1.5})


def found(**scores: Scores) -> dict[str, Any]:
    entrants = [Candidate(BASE, None, BASE), Candidate("taste", None, "1", ["vendi has changed by -0.5 (limit 0.1)"])]
    return results(SETTINGS, PROMPTS, entrants[: len(scores)], scores)


def test_the_table_names_every_metric_and_pairs_every_model_with_the_base() -> None:
    """Win rate: above, equal, above, above is 3.5 of 4; over two prompts Wilson's interval is wide."""
    lines = table(found(base=BEFORE, taste=AFTER)).splitlines()
    assert lines == [
        "model    mean  95 % interval      change from base  95 % interval       win rate  95 % interval",
        "-" * 96,
        "mixture-of-a-long-name",
        "  base   1.5   1.5 .. 1.5",
        "  taste  2.5   2.5 .. 2.5         +1                +1 .. +1            87.5%     26.4% .. 99.3%",
        "judge/crisp",
        "  base   0.5   0.09453 .. 0.9055",
        "  taste  1     0.3424 .. 1        +0.5              -0.3982 .. +0.8982",
        "vendi",
        "  base   2",
        "  taste  1.5                      -0.5",
    ]


def test_a_base_alone_has_no_columns_for_changes() -> None:
    assert table(found(base=BEFORE)).splitlines()[0] == "model   mean  95 % interval"


def test_pictures_alone_are_said_to_be_alone() -> None:
    assert table(found(base=Scores({}, {}))) == "No scorers and no measures: pictures only."


def test_warnings_come_first_and_prompts_are_told_from_pictures() -> None:
    assert notes(found(base=BEFORE, taste=AFTER)) == [
        "warning: taste vendi has changed by -0.5 (limit 0.1)",
        "4 pictures of 2 prompts a model, DDIM, 20 steps, guidance 5, eta 1, seeds from 5, base b (f)",
    ]
