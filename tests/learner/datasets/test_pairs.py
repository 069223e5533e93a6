"""Pairs from parquet files and folders: what is read, what is selected, and a name for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from learner.datasets.check import check, main
from learner.datasets.folder import FolderPairs, write_folder
from learner.datasets.order import PairSource
from learner.datasets.pairs import open_pairs
from learner.datasets.parquet import ParquetPairs
from learner.datasets.rows import DataError, PairRow, Selection, is_held_out
from tests.learner.datasets.conftest import encoded, pick_a_pic_row, write_parquet


def rows_of(source: PairSource) -> list[PairRow]:
    return [source.row(block, n) for block, size in enumerate(source.block_sizes()) for n in range(size)]


def captions(source: PairSource) -> list[int]:
    return [int(row.caption.split()[1]) for row in rows_of(source)]


def test_parquet_rows(shards: Path) -> None:
    source = open_pairs(shards)
    assert source.block_sizes() == [3, 3, 1, 3, 2]
    rows = rows_of(source)
    assert [row.caption for row in rows] == [f"caption {n}" for n in range(12)]
    assert rows[8] == PairRow(
        key=f"{shards}/b.parquet row 1", caption="caption 8", image_0=encoded((255, 0, 8)),
        image_1=encoded((0, 8, 255)), label_0=1.0, label_1=0.0, weight=1 / 3, tags={"annotator": "kim"},
    )  # fmt: skip
    assert len({row.key for row in rows}) == 12
    assert captions(open_pairs(shards / "b.parquet")) == [7, 8, 9, 10, 11]


def test_selection(tmp_path: Path) -> None:
    rows = [pick_a_pic_row(n) for n in range(6)]
    rows[0] |= {"has_label": False, "label_0": None, "label_1": None}
    rows[1]["are_different"] = False
    path = write_parquet(tmp_path / "a.parquet", rows)
    assert captions(ParquetPairs([str(path)])) == [2, 3, 4, 5]
    assert captions(ParquetPairs([str(path)], Selection(only_different=False))) == [1, 2, 3, 4, 5]
    assert captions(ParquetPairs([str(path)], Selection(where={"annotator": ["lee"]}))) == [3, 5]
    assert captions(ParquetPairs([str(path)], Selection(where={"annotator": ["kim"], "label_0": ["0.0"]}))) == []
    with pytest.raises(DataError, match=r"a\.parquet: data\.where names column taste; columns here: caption, jpg_0"):
        ParquetPairs([str(path)], Selection(where={"taste": ["crisp"]}))


def test_held_out_captions_are_in_one_split_only(shards: Path) -> None:
    train = captions(open_pairs(shards, Selection(split="train", held_out=0.3)))
    validation = captions(open_pairs(shards, Selection(split="validation", held_out=0.3)))
    assert sorted(train + validation) == list(range(12)) and train and validation
    share = sum(is_held_out(f"caption {n}", 0.1) for n in range(5000)) / 5000
    assert 0.08 < share < 0.12
    assert not is_held_out("any", 0.0)


def test_pictures_in_the_struct_that_datasets_stores(tmp_path: Path) -> None:
    row = pick_a_pic_row(0, jpg_0={"bytes": encoded(), "path": None})
    assert rows_of(open_pairs(write_parquet(tmp_path / "a.parquet", [row])))[0].image_0 == encoded()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label_0": None}, "label_0 is null"),
        ({"has_label": None}, "has_label is null"),
        ({"label_1": float("nan")}, "label_1 is nan"),
        ({"label_0": 1.0, "label_1": 1.0}, r"label_0 = 1\.0 and label_1 = 1\.0; 0 to 1, with sum 1"),
        ({"label_0": 2.0, "label_1": -1.0}, "label_0 = 2"),
        ({"caption": None}, "caption is null"),
        ({"caption": " "}, "caption is ' '"),
        ({"num_example_per_prompt": 0}, "num_example_per_prompt is 0"),
        ({"num_example_per_prompt": None}, "num_example_per_prompt is null"),
    ],
)
def test_bad_parquet_rows_are_named_on_opening(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    rows = [pick_a_pic_row(n) for n in range(5)]
    rows[4] |= changes
    path = write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(DataError, match=rf"a\.parquet row 4: {words}"):
        open_pairs(path)


def test_missing_columns_and_foreign_files(tmp_path: Path) -> None:
    row = pick_a_pic_row(0)
    del row["label_0"], row["jpg_1"]
    with pytest.raises(DataError, match=r"a\.parquet: missing columns label_0, jpg_1; it has caption, jpg_0"):
        open_pairs(write_parquet(tmp_path / "a.parquet", [row]))
    whole = write_parquet(tmp_path / "b.parquet", [pick_a_pic_row(0)])
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"b\.parquet: cannot be read \(truncated, or not a parquet file\)"):
        open_pairs(whole)
    with pytest.raises(DataError, match=r"none: no such file or directory"):
        open_pairs(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: neither a folder with pairs\.jsonl"):
        open_pairs(tmp_path / "empty")


def test_null_picture_names_row_and_column(tmp_path: Path) -> None:
    rows = [pick_a_pic_row(0), pick_a_pic_row(1, jpg_1=None)]
    source = open_pairs(write_parquet(tmp_path / "a.parquet", rows))
    with pytest.raises(DataError, match=r"a\.parquet row 1: jpg_1 is null"):
        rows_of(source)


def test_folder_round_trip(shards: Path, tmp_path: Path) -> None:
    wanted = rows_of(open_pairs(shards))
    write_folder(tmp_path / "out", wanted)
    found = rows_of(open_pairs(tmp_path / "out"))
    for left, right in zip(found, wanted, strict=True):
        assert (left.caption, left.image_0, left.image_1) == (right.caption, right.image_0, right.image_1)
        assert (left.label_0, left.weight, left.tags) == (right.label_0, right.weight, right.tags)
    assert found[0].key.endswith("pairs.jsonl line 1")


def write_lines(folder: Path, *lines: dict[str, Any] | str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "0.png").write_bytes(encoded())
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "pairs.jsonl").write_text("\n".join(texts))
    return folder


GOOD = {"caption": "a disc", "image_0": "0.png", "image_1": "0.png", "preferred": 1}


def test_folder_defaults(tmp_path: Path) -> None:
    lines = [GOOD, {**GOOD, "preferred": "tie"}, {**GOOD, "caption": "a ring", "weight": 0.25, "annotator": "kim"}]
    first, tie, other = rows_of(FolderPairs(write_lines(tmp_path / "f", *lines)))
    assert (first.label_0, first.label_1, first.weight) == (0, 1, 0.5)
    assert (tie.label_0, tie.label_1, tie.weight) == (0.5, 0.5, 0.5)
    assert (other.weight, other.tags) == (0.25, {"annotator": "kim"})
    kim = Selection(where={"annotator": ["kim"]})
    assert [row.caption for row in rows_of(FolderPairs(tmp_path / "f", kim))] == ["a ring"]
    with pytest.raises(DataError, match=r"data\.where names column taste"):
        FolderPairs(tmp_path / "f", Selection(where={"taste": ["crisp"]}))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", "line 2: not valid JSON"),
        ("[1]", "line 2: not a JSON object"),
        ({**GOOD, "preferred": 2}, "line 2: preferred is 2; 0, 1 or 'tie' is wanted"),
        ({**GOOD, "preferred": None}, "line 2: preferred is None"),
        ({**GOOD, "preferred": True}, "line 2: preferred is True"),
        ({"caption": "x", "image_0": "0.png", "preferred": 0}, "line 2: image_1 is None"),
        ({**GOOD, "caption": ""}, "line 2: caption is ''"),
        ({**GOOD, "weight": 0}, "line 2: weight is 0"),
        ({**GOOD, "annotator": ["kim"]}, r"line 2: annotator is \['kim'\]"),
    ],
)
def test_bad_lines(tmp_path: Path, line: Any, words: str) -> None:
    folder = write_lines(tmp_path / "f", GOOD, line)
    with pytest.raises(DataError, match=rf"pairs\.jsonl {words}"):
        open_pairs(folder)


def test_folder_pictures_that_are_not_there(tmp_path: Path) -> None:
    lines = [{**GOOD, "image_1": "gone.png"}, {**GOOD, "image_0": "../secret.png"}]
    source = open_pairs(write_lines(tmp_path / "f", *lines))
    with pytest.raises(DataError, match=r"line 1: image_1 = 'gone\.png' cannot be read: No such file"):
        source.row(0, 0)
    with pytest.raises(DataError, match=r"line 2: image_0 = '\.\./secret\.png' lies outside the folder"):
        source.row(0, 1)


def test_checker_names_every_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [pick_a_pic_row(n) for n in range(6)]
    rows[1]["label_0"] = None
    rows[2]["jpg_0"] = encoded(size=(1, 1))
    rows[3]["jpg_1"] = b"no picture"
    rows[4]["jpg_0"] = None
    path = write_parquet(tmp_path / "a.parquet", rows)
    good, problems = check(path)
    assert good == 2
    assert [text.split("a.parquet ")[1].split(";")[0].split(" <_io")[0] for text in problems] == [
        "row 1: label_0 is null",
        "row 2 image 0 has 1 x 1 pixels",
        "row 3 image 1 cannot be decoded (damaged, or not a picture): cannot identify image file",
        "row 4: jpg_0 is null",
    ]
    folder = write_lines(tmp_path / "f", GOOD, "{", {**GOOD, "image_0": "gone.png"}, {**GOOD, "preferred": 7})
    good, problems = check(folder)
    assert good == 1 and [f"line {n}" in text for n, text in zip((2, 4, 3), problems, strict=True)] == [True] * 3
    assert main([str(path), str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "row 4: jpg_0 is null" in printed and f"{folder}: 1 good pairs, 3 problems" in printed


def test_checker_on_good_data_and_on_none(shards: Path, tmp_path: Path) -> None:
    assert main([str(shards)]) == 0
    assert main([str(tmp_path / "none")]) == 1
    broken = shards / "c.parquet"
    broken.write_bytes(b"PAR1")
    good, problems = check(shards)
    assert good == 12 and len(problems) == 1 and "c.parquet: cannot be read" in problems[0]
