"""What is said of lost ranks: why, which restart it is, and nothing of what was before or is only half written."""

from __future__ import annotations

import pytest

from learner.lost_ranks import LOG, LossReader, note_loss
from learner.ranks import root_cause


def test_each_loss_is_said_once_with_its_restart(tmp_path):
    note_loss(tmp_path, {0: "of the run before"})
    reader = LossReader(tmp_path, max_failures=2)
    assert reader.new() == []
    note_loss(tmp_path, {1: "ValueError: seven", 0: "no answer"})
    again = "All ranks start again from the last checkpoint"
    assert reader.new() == [f"lost rank 0: no answer; rank 1: ValueError: seven. {again} (restart 1 of 2)"]
    with (tmp_path / LOG).open("a") as file:
        file.write("2026-12-01T00:00:00 rank 3: half a ")
    assert reader.new() == []
    with (tmp_path / LOG).open("a") as file:
        file.write("line\n")
    assert reader.new() == [f"lost rank 3: half a line. {again} (restart 2 of 2)"]
    note_loss(tmp_path, {0: "the last"})
    assert reader.new() == [], "the run fails, which says why"
    assert len((tmp_path / LOG).read_text().splitlines()) == 4


def test_a_loss_that_cannot_be_noted_costs_nothing_more(tmp_path):
    note_loss(tmp_path / "gone", {0: "No space left on device"})
    assert LossReader(tmp_path / "gone", max_failures=1).new() == []


class Wrapped(Exception):
    """As Ray Train wraps it (test_ranks.py has its own)."""

    def __init__(self, failure):
        super().__init__("A worker health check failed.")
        self.health_check_failure = failure


DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: A
\tpid: 24707
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: End of file. \
Some common causes include: (1) the process was killed by the OOM killer"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("seven"), "ValueError: seven"),
        (RuntimeError("Traceback (most recent call last):\n  at home\nKeyError: 7"), "RuntimeError: KeyError: 7"),
        (
            Wrapped(RuntimeError(DIED)),
            "RuntimeError: The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
            "Worker exit detail: End of file.",
        ),
    ],
)
def test_the_root_cause_is_what_a_rank_met(error, words):
    assert root_cause(error) == words
