"""Data sets in every form give the same rows, in an order of seed and position alone; what is bad is named."""

from __future__ import annotations

import json
import tarfile

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from learner.datasets.examples import Examples
from learner.datasets.parquet_table import ParquetTable
from learner.datasets.rows import DataError
from learner.datasets.tables import BadRow
from rollout.miniature.dataset import RenderedRow, render_rows, write_rows
from tests.learner.datasets.conftest import hub_layout
from tests.learner.offline.sets import FORMS, data_section, write_set


def content(example):
    return example.caption, tuple(data for _, data in example.images)


def epoch(examples, number=0):
    return [content(examples.example(number * examples.rows + place)) for place in range(examples.rows)]


@pytest.mark.parametrize("kind", ["pairs", "images"])
@pytest.mark.parametrize("form", FORMS)
def test_an_epoch_is_every_row_once_in_every_form(tmp_path, kind, form):
    rows = render_rows(kind, 6)
    examples = Examples(data_section(kind, write_rows(rows, tmp_path, form)), seed=3)
    names = ("win", "lose") if kind == "pairs" else ("image",)
    wanted = [(row.columns["caption"], tuple(row.images[name] for name in names)) for row in rows]
    assert examples.rows == 6 and examples.left_out == 0
    assert sorted(epoch(examples)) == sorted(epoch(examples, 1)) == sorted(wanted)
    assert epoch(examples) != epoch(examples, 1), "reshuffled"
    assert epoch(Examples(data_section(kind, examples._data.path), seed=4)) != epoch(examples)


def test_any_position_can_be_asked_for_alone(tmp_path):
    data = data_section("images", write_set(tmp_path, "images", "webdataset", 9))
    whole = Examples(data, seed=1)
    inorder = [content(whole.example(position)) for position in range(20)]
    for position in (19, 3, 11, 0):
        assert content(Examples(data, seed=1).example(position)) == inorder[position]


def test_several_files_are_one_set(tmp_path):
    rows = render_rows("images", 6)
    for part in range(3):
        write_rows(rows[2 * part : 2 * part + 2], tmp_path / f"part-{part}", "parquet")
    examples = Examples(data_section("images", tmp_path, shuffle_blocks=1), seed=0)
    order = [caption for caption, _ in epoch(examples)]
    assert sorted(order) == sorted(row.columns["caption"] for row in rows)
    file_of = {row.columns["caption"]: number // 2 for number, row in enumerate(rows)}
    files = [file_of[caption] for caption in order]
    assert files[0] == files[1] and files[2] == files[3], "a window of one block stays in its file"
    pattern = Examples(data_section("images", tmp_path / "part-[01]" / "*.parquet", format="parquet"), seed=0)
    assert pattern.rows == 4


@pytest.mark.parametrize("form", FORMS)
def test_a_taste_and_a_limit(tmp_path, form):
    rows = render_rows("images", 6)
    tagged = [
        RenderedRow(row.images, {**row.columns, "annotator": "kim" if number % 2 else "lee"})
        for number, row in enumerate(rows)
    ]
    path = write_rows(tagged, tmp_path, form)
    kims = [row.columns["caption"] for row in rows[1::2]]
    chosen = Examples(data_section("images", path, where={"annotator": ["kim"]}), seed=0)
    assert sorted(caption for caption, _ in epoch(chosen)) == sorted(kims)
    two = Examples(data_section("images", path, where={"annotator": ["kim"]}, limit=2), seed=0)
    assert sorted(caption for caption, _ in epoch(two)) == sorted(kims[:2])
    with pytest.raises(DataError, match=r"data\.where names column colour, which no row has"):
        Examples(data_section("images", path, where={"colour": ["red"]}), seed=0)
    with pytest.raises(DataError, match="no row is left"):
        Examples(data_section("images", path, where={"annotator": ["max"]}), seed=0)


def test_labelled_pairs_of_pick_a_pic_and_of_pairs_jsonl(tmp_path):
    one, two = (row.images for row in render_rows("pairs", 2))
    columns = {"caption": "x", "jpg_0": one["lose"], "jpg_1": one["win"], "has_label": True, "are_different": True}
    rows = [
        {**columns, "label_0": 0.0, "label_1": 1.0},
        {**columns, "label_0": 0.5, "label_1": 0.5},
        {**columns, "label_0": 0.0, "label_1": 1.0, "has_label": False},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    picked = Examples(data_section("pairs", tmp_path / "rows.parquet"), seed=0)
    assert picked.rows == 1 and picked.left_out == 2
    assert content(picked.example(0)) == ("x", (one["win"], one["lose"]))

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(two["lose"])
    (folder / "b.png").write_bytes(two["win"])
    line = {"caption": "y", "image_0": "a.png", "image_1": "b.png"}
    lines = [{**line, "preferred": 1}, {**line, "preferred": "tie"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    listed = Examples(data_section("pairs", folder), seed=0)
    assert listed.rows == 1 and content(listed.example(0)) == ("y", (two["win"], two["lose"]))


def test_a_split_is_streamed_in_the_order_of_local_files(tmp_path, monkeypatch):
    hub = hub_layout(tmp_path, monkeypatch)
    streamed = Examples(data_section("pairs", hub, split="train"), seed=3)
    local = Examples(data_section("pairs", hub / "data" / "train-*.parquet", format="parquet"), seed=3)
    assert streamed.rows == 12 and streamed.fingerprint == local.fingerprint
    assert epoch(streamed) == epoch(local) and epoch(streamed, 2) == epoch(local, 2)
    for split, match in (("test", r"hub: no split 'test'; it has train, validation"),):
        with pytest.raises(DataError, match=match):
            Examples(data_section("pairs", hub, split=split), seed=0)


def test_a_parquet_file_of_another_file_system(tmp_path):
    memory = fsspec.filesystem("memory")
    path = write_set(tmp_path, "images", "parquet", 4)
    memory.pipe("/offline/rows.parquet", path.read_bytes())
    remote, local = (ParquetTable([file], 2) for file in ("memory://offline/rows.parquet", path))
    assert remote.fingerprint == local.fingerprint
    columns = ["caption", "image"]
    assert [remote.read(0, n, columns).values for n in range(4)] == [local.read(0, n, columns).values for n in range(4)]
    assert remote.read(0, 3, columns).where == "memory://offline/rows.parquet row 3"
    memory.rm("/offline/rows.parquet")
    path.unlink()
    with pytest.raises(FileNotFoundError):  # not a bad row: it may be there again after a restart
        remote.read(0, 0, ["caption"])
    with pytest.raises(BadRow, match=r"row 0: row group 0 cannot be read"):
        local.read(0, 0, ["caption"])


def bad(data, match):
    with pytest.raises(BadRow, match=match):
        Examples(data, seed=0).example(0)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"caption": null, "image": "a.png"}', r"rows\.jsonl line 2: column 'caption' must be text, found null"),
        ('{"caption": " ", "image": "a.png"}', r"line 2: column 'caption' is empty"),
        ('{"caption": "x"}', r"line 2: no column 'image'; there are: caption"),
        ('{"caption": "x", "image": 3}', r"line 2: column 'image' must be an image .*, found int"),
        ('{"caption": "x", "image": "gone.png"}', r"line 2: .*gone\.png: cannot be read: No such file"),
        ('{"caption": ', r"line 2: not JSON: .* \(column"),
        ("[1]", r"line 2: expected a JSON object, found list"),
    ],
)
def test_bad_lines_are_named_by_file_and_line(tmp_path, line, match):
    (tmp_path / "rows.jsonl").write_text(f"\n{line}\n")
    bad(data_section("images", tmp_path / "rows.jsonl"), match)


def test_a_row_that_is_no_pair_is_named(tmp_path):
    path = write_set(tmp_path, "images", "parquet", 2)
    bad(data_section("pairs", path), r"rows\.parquet row [01]: no pair of images: columns win and lose; or jpg_0")
    bad(data_section("images", path, image="picture"), r"row [01]: no column 'picture'; there are: caption")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.tar"])
def test_damaged_files_are_named(tmp_path, name):
    form = "parquet" if name.endswith("parquet") else "webdataset"
    path = write_set(tmp_path, "images", form)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{name}: "):
        Examples(data_section("images", path), seed=0)


def test_a_damaged_header_is_not_taken_for_the_archive_s_end(tmp_path):
    path = write_set(tmp_path, "images", "webdataset")
    with tarfile.open(path) as archive:
        second = archive.getmembers()[2]
    data = bytearray(path.read_bytes())
    data[second.offset : second.offset + 200] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"no file header at byte {second.offset}"):
        Examples(data_section("images", path), seed=0)


def test_what_is_not_there_or_not_clear_is_refused(tmp_path):
    for path, match in (
        (tmp_path / "none", "neither a folder nor .jsonl, .parquet or .tar"),
        (tmp_path / "none.tar", "no such file or folder"),
    ):
        with pytest.raises(DataError, match=match):
            Examples(data_section("images", path), seed=0)
    write_set(tmp_path, "images", "jsonl")
    write_set(tmp_path, "images", "parquet")
    with pytest.raises(DataError, match=r"holds \.jsonl and \.parquet files; set data\.format"):
        Examples(data_section("images", tmp_path), seed=0)
    assert Examples(data_section("images", tmp_path, format="parquet"), seed=0).rows == 6
