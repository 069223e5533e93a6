"""Files as people have them: names, duplicates, links, empty and damaged ones. Read, or named with what is wrong."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from learner.datasets.examples import Examples
from learner.datasets.rows import DataError
from learner.datasets.tables import BadRow
from tests.learner.offline.sets import data_section


def picture(seed=0, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, format=form)
    return buffer.getvalue()


def folder_of(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_of(path, members):
    """Members (name, bytes) in this order, a name perhaps twice."""
    with tarfile.open(path, "w", errors="surrogateescape", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def captions(kind, path, **more):
    """Sorted captions of an epoch."""
    examples = Examples(data_section(kind, path, **more), seed=0)
    assert len(examples.fingerprint) == 64
    return sorted(examples.example(place).caption for place in range(examples.rows))


def refused(error, match, kind, path, **more):
    with pytest.raises(error, match=match):
        Examples(data_section(kind, path, **more), seed=0).example(0)


def test_kinds_and_cases_of_endings_in_nested_folders(tmp_path):
    files = {
        "a.JPG": picture(1, "JPEG"), "a.TXT": b"A", "b.jpeg": picture(2, "JPEG"), "b.txt": b"B",
        "c.webp": picture(3, "WEBP"), "c.json": b'{"caption": "C"}', "sub/a.png": picture(4), "sub/a.txt": b"sub A",
        "._a.JPG": b"a Mac's", ".DS_Store": b"a Mac's", "README.md": b"not a row",
    }  # fmt: skip
    path = folder_of(tmp_path / "set", files)
    assert captions("images", path) == ["A", "B", "C", "sub A"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(path)
    (path / "sub" / "round").symlink_to(path)
    assert captions("images", tmp_path / "linked") == ["A", "B", "C", "sub A"], "links are followed, each folder once"


def test_files_are_known_by_their_ending_in_any_case(tmp_path):
    for folder, name in (("one", "ROWS.TAR"), ("two", "x.Tar")):
        path = folder_of(tmp_path / folder, {"notes.md": b""})
        tar_of(path / name, [("0.png", picture()), ("0.txt", b"in the archive")])
        assert captions("images", path / name) == captions("images", path) == ["in the archive"]


NAMES = ("日本語 😀", "über straße", "ü" * 120, "a::b", "x[1]", "100%#q")


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_names_in_any_script_and_with_any_sign(tmp_path, form):
    members = [(f"{name}.{end}", data) for name in NAMES if len(name.encode()) < 200 or form == "webdataset"
               for end, data in (("png", picture()), ("txt", name.encode()))]  # fmt: skip
    if form == "folder":
        path = folder_of(tmp_path / "set [1]", dict(members))
    else:
        path = tar_of(tmp_path / "rows [1] a::b.tar", members)
    assert captions("images", path) == sorted({name.rpartition(".")[0] for name, _ in members})


def test_names_of_parquet_and_manifest(tmp_path):
    table = pyarrow.Table.from_pylist([{"caption": "x", "image": picture()}])
    for name in ("a::b.parquet", "rows [1]#%.parquet"):
        pyarrow.parquet.write_table(table, tmp_path / name)
        assert captions("images", tmp_path / name) == ["x"]
    folder_of(tmp_path, {"rows[1].jsonl": b'{"caption": "y", "image": "a.png"}\r\n\r\n', "a.png": picture()})
    assert captions("images", tmp_path / "rows[1].jsonl") == ["y"]


def test_a_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "set", {"a.png": picture(), "a.txt": b"at home"})
    assert captions("images", "~/set") == ["at home"]


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_a_name_that_is_not_utf_8_is_named(tmp_path, form):
    latin = os.fsdecode(b"caf\xe9.png")
    path = folder_of(tmp_path / "set", {latin: picture()}) if form == "folder" else tmp_path / "rows.tar"
    if form == "webdataset":
        tar_of(path, [(latin, picture())])
    refused(DataError, r"the name 'caf\\udce9\.png' is not UTF-8; rename this file", "images", path)


def test_two_files_of_one_column_are_refused_and_files_come_before_their_json(tmp_path):
    double = folder_of(tmp_path / "double", {"a.jpg": picture(1, "JPEG"), "a.png": picture(2), "a.txt": b"x"})
    refused(BadRow, r"a\.\*: \.jpg and \.png both are column 'image'.*rename or remove one", "images", double)
    dotted = folder_of(tmp_path / "dotted", {"i.1.png": picture(1), "i.1.txt": b"x", "i.2.png": picture(2)})
    refused(
        BadRow, r"i\.\*: \.1\.png and \.1\.txt both are column '1', as what follows a name's first", "images", dotted
    )
    twice = tar_of(tmp_path / "twice.tar", [("0.win.png", picture(n)) for n in (1, 2)])
    refused(BadRow, r"\.win\.png and \.win\.png both are column 'win'", "pairs", twice)

    side = json.dumps({"caption": None, "image": "original.jpg", "taste": "soft"}).encode()
    for order in (("png", "txt", "json"), ("json", "png", "txt")):  # img2dataset's come in the first one
        content = {"png": picture(), "txt": b"of the text", "json": side}
        path = tar_of(tmp_path / f"{order[0]}.tar", [(f"0.{end}", content[end]) for end in order])
        assert captions("images", path, where={"taste": ["soft"]}) == ["of the text"]


def test_archives_of_links_and_of_rows_in_pieces_are_refused(tmp_path):
    path = folder_of(tmp_path / "set", {"0.png": picture(), "0.txt": b"x", "1.txt": b"y"})
    os.link(path / "0.png", path / "1.png")
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        for file in sorted(path.iterdir()):
            archive.add(file, arcname=file.name)
    refused(
        DataError,
        r"links\.tar: 1\.png is a link to 0\.png; pack the files themselves",
        "images",
        tmp_path / "links.tar",
    )
    apart = [("0.win.png", picture(1)), ("1.win.png", picture(2)), ("0.lose.png", picture(3))]
    refused(DataError, "files of 0 do not follow each other", "pairs", tar_of(tmp_path / "apart.tar", apart))


def test_empty_shards_and_sets(tmp_path):
    empty = folder_of(tmp_path / "empty", {"rows.jsonl": b"\n\n"})
    refused(DataError, r"rows\.jsonl: holds no row; give data\.path files with rows", "images", empty / "rows.jsonl")
    refused(DataError, "holds no row", "images", tar_of(tmp_path / "rows.tar", []))
    shards = folder_of(tmp_path / "shards", {})
    shards.mkdir()
    tar_of(shards / "0.tar", [])
    for number in (1, 2):  # the same key in both: two rows
        tar_of(shards / f"{number}.tar", [("0.png", picture(number)), ("0.txt", f"of {number}".encode())])
    assert captions("images", shards) == ["of 1", "of 2"]


def test_parquet_files_with_columns_in_another_order_row_groups_of_all_sizes_and_none(tmp_path):
    rows = [{"caption": f"a{n}", "image": picture(n)} for n in range(7)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    other = [{"image": picture(9), "caption": "b0"}, {"image": picture(8), "caption": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(other), tmp_path / "b.parquet")
    schema = pyarrow.schema([("caption", pyarrow.string()), ("image", pyarrow.binary())])
    pyarrow.parquet.write_table(schema.empty_table(), tmp_path / "c.parquet")
    examples, found, bad = Examples(data_section("images", tmp_path), seed=0), [], []
    for place in range(examples.rows):
        try:
            found.append(examples.example(place).caption)
        except BadRow as error:
            bad.append(str(error))
    assert sorted(found) == [*(f"a{n}" for n in range(7)), "b0"]
    assert bad == [f"{tmp_path / 'b.parquet'} row 1: column 'caption' must be text, found null"]
    names = ["caption", "caption", "image"]
    table = pyarrow.table([pyarrow.array(["x"]), pyarrow.array(["y"]), pyarrow.array([picture()])], names=names)
    pyarrow.parquet.write_table(table, tmp_path / "double.parquet")
    refused(DataError, "has column caption more than once; rename", "images", tmp_path / "double.parquet")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"caption": "x", "image": "a\\u0000.png"}', r"column 'image' = 'a\\x00\.png' is no path"),
        ('{"caption": "x", "image": "\\ud800.png"}', r"column 'image' = '\\ud800\.png' is no path"),
        ('{"caption": "lone \\ud800", "image": "a.png"}', r"column 'caption' is no text: half a character at 5"),
        ('{"caption": "x", "n": ' + "1" * 5000 + ', "image": "a.png"}', r"line 1: not JSON that can be read"),
        ("[" * 100_000, r"line 1: not JSON that can be read"),
        ('{"caption": "x", "image": "."}', r"cannot be read: Is a directory"),
    ],
)  # fmt: skip
def test_lines_that_no_tool_should_write_are_bad_rows(tmp_path, line, match):
    path = folder_of(tmp_path, {"a.png": picture(), "rows.jsonl": line.encode()}) / "rows.jsonl"
    refused(BadRow, match, "images", path)


def test_a_caption_may_have_the_separators_of_unicode(tmp_path):
    text = "one\u2028two\x85three"
    line = json.dumps({"caption": text, "image": "a.png"}, ensure_ascii=False)
    path = folder_of(tmp_path, {"a.png": picture(), "rows.jsonl": line.encode()}) / "rows.jsonl"
    assert captions("images", path) == [text]


def test_labels_that_contradict_each_other_are_no_preference(tmp_path):
    def labelled(**labels):
        row = {"caption": "x", "jpg_0": "a.png", "jpg_1": "b.png", **labels}
        files = {"a.png": picture(1), "b.png": picture(2), "rows.jsonl": json.dumps(row).encode()}
        return folder_of(tmp_path, files) / "rows.jsonl"

    for both in (0, 1):
        refused(
            BadRow,
            f"'label_0' is {both} and 'label_1' {both}; a sum of 1",
            "pairs",
            labelled(label_0=both, label_1=both),
        )
    refused(DataError, "no row is left", "pairs", labelled(label_0=1, label_1=0, has_label=0))
    assert captions("pairs", labelled(label_0=0.3, label_1=0.7)) == captions("pairs", labelled(label_0=1)) == ["x"]
