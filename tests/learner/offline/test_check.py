"""The checker as learner.main reads: every form, every kind of bad row, by file and row."""

from __future__ import annotations

import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from learner.datasets.check import main
from rollout.miniature.dataset import RenderedRow, render_rows, write_rows
from tests.learner.offline.sets import FORMS, write_set


def said(capsys, *arguments):
    """Exit status and the lines that were printed."""
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("kind", ["pairs", "images"])
@pytest.mark.parametrize("form", FORMS)
def test_good_rows_of_every_form(tmp_path, capsys, kind, form):
    path = write_set(tmp_path, kind, form, 3)
    assert said(capsys, "--type", kind, path) == (0, [f"{path}: 3 good {kind}, 0 problems"])


@pytest.mark.parametrize("form", FORMS)
def test_every_bad_row_of_every_form_is_named(tmp_path, capsys, form):
    """Of six rows: a damaged picture, an empty caption, no loser, two equal pictures, two shapes; one is good."""
    rows = render_rows("pairs", 6)
    images, captions = [dict(row.images) for row in rows], [row.columns["caption"] for row in rows]
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32)).save(buffer, format="PNG")
    images[0]["win"] = b"no picture"
    captions[1] = " "
    del images[2]["lose"]
    images[3]["lose"] = images[3]["win"]
    images[4]["lose"] = buffer.getvalue()
    spoiled = [RenderedRow(shown, {"caption": text}) for shown, text in zip(images, captions, strict=True)]
    path = write_rows(spoiled, tmp_path, form)
    status, lines = said(capsys, "--type", "pairs", path)
    assert status == 1 and lines[-1] == f"{path}: 1 good pairs, 5 problems"
    reasons = ("cannot be decoded", "caption", "lose", "show the same image", "win has 64 x 64 pixels and lose 64 x 32")
    rows_by_form = {"jsonl": "line {}", "parquet": "row {}", "folder": "00000{}.*", "webdataset": "00000{}.*"}
    for number, (line, reason) in enumerate(zip(lines, reasons, strict=False)):
        place = rows_by_form[form].format(number + (form == "jsonl"))
        assert str(path) in line and place in line and reason in line, line


def test_a_file_that_cannot_be_read_does_not_hide_the_others(tmp_path, capsys):
    for name in "abc":
        write_rows(render_rows("images", 2), tmp_path / name, "webdataset")
    (tmp_path / "b" / "rows.tar").write_bytes(b"no archive" * 100)
    status, lines = said(capsys, "--type", "images", tmp_path)
    assert status == 1 and lines[-1].endswith("4 good images, 1 problems")
    assert "b/rows.tar: not a plain tar archive" in lines[0]


def test_files_with_other_columns_are_named(tmp_path, capsys):
    write_rows(render_rows("images", 2), tmp_path / "a", "parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a" / "rows.parquet").append_column("more", pyarrow.array(["x", "y"]))
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    status, lines = said(capsys, "--type", "images", tmp_path)
    assert status == 1 and "b.parquet: has other columns than" in lines[0] and lines[0].endswith("more")


def test_other_column_names_and_rows_without_a_preference(tmp_path, capsys):
    write_rows(render_rows("pairs", 2), tmp_path, "jsonl")
    path = tmp_path / "rows.jsonl"
    renamed = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        renamed.append({"text": row["caption"], "image_0": row["win"], "image_1": row["lose"], "preferred": "tie"})
    renamed[1]["preferred"] = 0
    path.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    assert said(capsys, "--type", "pairs", path)[1][-1].endswith("0 good pairs, 1 without a preference, 1 problems")
    status, lines = said(capsys, "--type", "pairs", "--caption", "text", path)
    assert status == 0 and lines == [f"{path}: 1 good pairs, 1 without a preference, 0 problems"]


def test_what_is_not_there_and_wrong_usage(tmp_path, capsys):
    assert said(capsys, "--type", "images", tmp_path / "none")[0] == 1
    for arguments in (["--caption", "text", "x"], ["--type", "images", "--win", "a", "x"], ["--type", "other", "x"]):
        with pytest.raises(SystemExit) as wrong:
            main(arguments)
        assert wrong.value.code == 2
