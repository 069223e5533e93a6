"""The rendered data sets: the same from the same arguments, in every form, with the better picture as the winner."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from rollout.miniature.dataset import main, render_rows, write_rows
from rollout.miniature.judge import judge_captions
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
