"""The configuration document is current, and every field is documented."""

from __future__ import annotations

import pytest

from configs import docs
from configs.load import ROOT
from configs.tree import entries


def test_the_document_is_current() -> None:
    assert docs.DOCUMENT.read_text(encoding="utf-8") == docs.render(), "run: python -m configs.docs"


def test_every_field_has_its_line_of_documentation() -> None:
    silent = [entry.path for entry in entries(ROOT) if not entry.info.description and not entry.path.endswith(".type")]
    assert silent == []


def test_every_plain_key_has_a_row() -> None:
    text = docs.render()
    assert [entry.path for entry in entries(ROOT) if entry.is_plain and f"| `{entry.path}` |" not in text] == []


def test_a_row_shows_type_default_and_bounds() -> None:
    assert (
        "| `learner.objective.clip` | number or null | `0.1` | above 0 and below 1 "
        "| Half width of the ratio's clip range (released settings: 0.1). "
        "Unset: no clip, as the paper writes the loss. |"
    ) in docs.render().split("\n")


def test_check_tells_current_from_outdated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    assert docs.main(["--check"]) == 0
    monkeypatch.setattr(docs, "DOCUMENT", docs.Path(str(tmp_path)) / "docs" / "configuration.md")
    assert docs.main(["--check"]) == 1
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    assert "out of date: run python -m configs.docs" in capsys.readouterr().out
