"""The rendered data sets: the same from the same arguments, in every form, with the better picture as the winner."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from learner.datasets.pairs import open_pairs
from rollout.miniature.dataset import main, render_rows, stream_rows, write_rows
from rollout.miniature.judge import judge_captions
from rollout.miniature.preference_data import KINDS
from rollout.miniature.world import is_heldout, parse_caption


def pictures(encoded):
    arrays = [np.asarray(Image.open(io.BytesIO(data))) for data in encoded]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_rows_depend_on_the_arguments_alone():
    assert render_rows("pairs", 6, seed=1) == render_rows("pairs", 6, seed=1)
    assert render_rows("images", 6, seed=1) != render_rows("images", 6, seed=2)


def test_winners_are_what_the_taste_prefers():
    rows = render_rows("pairs", 48)
    captions = [row.columns["caption"] for row in rows]
    assert not any(map(is_heldout, captions)) and all(map(parse_caption, captions))
    assert all(row.images["win"] != row.images["lose"] for row in rows)
    better, worse = (judge_captions(pictures([row.images[side] for row in rows]), captions) for side in ("win", "lose"))

    def score(verdicts):
        return sum(verdict["all"] + (verdict["finish"] == "crisp") for verdict in verdicts)

    assert score(better) > score(worse) + 36, "each pair differs in caption or finish"


def test_images_are_in_the_finish_that_was_asked_for():
    rows = render_rows("images", 16, finish="soft")
    verdicts = judge_captions(pictures([row.images["image"] for row in rows]), [row.columns["caption"] for row in rows])
    assert all(verdict["finish"] == "soft" and verdict["all"] for verdict in verdicts)


@pytest.mark.parametrize("kind", ["pairs", "images"])
def test_every_form_holds_the_same_rows(tmp_path, kind):
    rows = render_rows(kind, 3)
    column = "win" if kind == "pairs" else "image"
    paths = {form: write_rows(rows, tmp_path / form, form) for form in ("folder", "jsonl", "parquet", "webdataset")}

    middle = "" if kind == "images" else ".win"
    assert (paths["folder"] / f"000001{middle}.png").read_bytes() == rows[1].images[column]
    line = json.loads(paths["jsonl"].read_text().splitlines()[1])
    assert (paths["jsonl"].parent / line[column]).read_bytes() == rows[1].images[column]
    assert line["caption"] == rows[1].columns["caption"]
    assert pyarrow.parquet.read_table(paths["parquet"]).to_pylist()[1] == {**rows[1].columns, **rows[1].images}
    with tarfile.open(paths["webdataset"]) as archive:
        assert archive.extractfile(f"000001{middle}.png").read() == rows[1].images[column]


def test_the_command(tmp_path, capsys):
    out = tmp_path / "set"
    assert main(["--out", str(out), "--kind", "images", "--count", "2", "--format", "jsonl"]) == 0
    assert f"data.type=images data.path={out / 'rows.jsonl'}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--out", str(out)])
    assert "is not empty" in capsys.readouterr().err


def test_preferences_are_pick_a_pics_rows_of_every_kind(tmp_path, capsys):
    """Read back by the preference model's own reader; ties are labelled as such, and every row says its kind."""
    out = tmp_path / "preferences"
    arguments = ["--out", str(out), "--kind", "preferences", "--count", "160", "--split", "heldout"]
    assert main(arguments) == 0
    assert f"data.source={out / 'rows.parquet'}" in capsys.readouterr().out
    source = open_pairs(out)
    assert source.block_sizes() == [64, 64, 32], "pictures are read a row group at a time"
    rows = [source.row(block, place) for block, size in enumerate(source.block_sizes()) for place in range(size)]
    assert all(is_heldout(row.caption) and row.weight == 1 for row in rows)
    kinds = Counter(row.tags["kind"] for row in rows)
    assert kinds.keys() == KINDS.keys() and kinds["finish"] > kinds["caption"] > kinds["tie"] > 0
    assert all((row.label_0 == 0.5) == (row.tags["kind"] == "tie") for row in rows)
    finish = [row for row in rows if row.tags["kind"] == "finish"]
    preferred = [row.image_0 if row.label_0 == 1 else row.image_1 for row in finish]
    verdicts = judge_captions(pictures(preferred), [row.caption for row in finish])
    assert sum(verdict["finish"] == "crisp" for verdict in verdicts) > 0.95 * len(finish)


def test_parts_of_a_long_set_are_different_and_repeatable():
    rows = list(stream_rows("preferences", 516, seed=4))
    captions = [row.columns["caption"] for row in rows]
    assert len(rows) == 516 and captions[:4] != captions[512:], "the second part is not the first again"
    assert captions[:512] == [row.columns["caption"] for row in render_rows("preferences", 512, seed=4)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "preferences", "--format", "jsonl"], "Pick-a-Pic's columns are parquet's only"),
        (["--count", "0"], "--count must be at least 1"),
    ],
)
def test_what_the_command_refuses(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "set"), *arguments])
    assert words in capsys.readouterr().err
