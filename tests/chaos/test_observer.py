"""The observer of a storm answers apart from what Ray prints in its process."""

from __future__ import annotations

import io
import json
import sys

from tests.chaos import observer


def test_a_raylets_warning_is_no_answer(monkeypatch, capsys):
    def look(_):
        print("(raylet) WARNING: 8 PYTHON worker processes have been started")  # as ray does, from a thread of its own
        return {"workers": {}}

    monkeypatch.setattr(observer, "look", look)
    monkeypatch.setattr(observer, "reach", lambda address: address)
    monkeypatch.setattr(observer.ray, "init", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["observer", "127.0.0.1:1", "run"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("look\n"))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # `main` exchanges it
    assert observer.main() == 0
    answer, aside = capsys.readouterr()
    assert json.loads(answer) == {"workers": {}} and "(raylet)" in aside
