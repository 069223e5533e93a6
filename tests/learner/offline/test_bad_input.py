"""Data sets and objectives that cannot be, through the command itself: one error, before Ray, and nothing on disk."""

from __future__ import annotations

import io
import json

import pytest
import ray
from PIL import Image

from learner import main as command
from tests.learner.offline.sets import write_set

DPO = "learner.objective.type=dpo"


def png(size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


def pair(folder, win=None, lose=None, **columns):
    """Settings of a run on one pair; `win` and `lose` are files' contents, of which None leaves the file out."""
    for name, data in (("win.png", win), ("lose.png", lose)):
        if data is not None:
            (folder / name).write_bytes(data)
    row = {"caption": "a red disc", "win": "win.png", "lose": "lose.png", **columns}
    (folder / "rows.jsonl").write_text(json.dumps({key: value for key, value in row.items() if value != ""}))
    return [DPO, "data.type=pairs", f"data.path={folder / 'rows.jsonl'}"]


def images(folder, *more):
    return [*more, "data.type=images", f"data.path={write_set(folder, 'images', 'folder', 2)}"]


def write_again(folder):
    """The pictures of a folder once more, under another ending."""
    for file in (found := list(folder.glob("*.png"))):
        file.with_suffix(".jpg").write_bytes(file.read_bytes())
    return found


def final(*more):
    return lambda _: [*more, "rollout.sampler.type=final_pairs"]


BAD = {
    "missing file": (lambda f: pair(f, win=png()), "rows.jsonl line 1: ", "lose.png: cannot be read: No such file"),
    "damaged picture": (
        lambda f: pair(f, png(), png()[:60]), "line 1: picture lose cannot be decoded", "set data.on_bad_row to skip"
    ),
    "equal images": (lambda f: pair(f, png(), png()), "line 1: win and lose show the same image", "on_bad_row"),
    "one column twice": (
        lambda f: [*images(f, "learner.objective.type=sft"), f"data.limit={len(write_again(f))}"],
        ".jpg and .png both are column 'image'", "remove one",
    ),
    "unequal sizes": (lambda f: pair(f, png(), png((64, 32))), "win has 64 x 64 pixels and lose 64 x 32", "to crop"),
    "missing column": (lambda f: pair(f, png(), png(), caption=""), "line 1: no column 'caption'; there are:", "lose"),
    "empty caption": (lambda f: pair(f, png(), png(), caption=" "), "line 1: column 'caption' is empty", ""),
    "no data set": (lambda _: [DPO, "data.type=pairs", "data.path=/nowhere"], "/nowhere: ", "neither a folder nor"),
    "no path": (lambda _: [DPO, "data.type=pairs"], "data.path is missing", ""),
    "a column that no row has": (
        lambda f: images(f, "learner.objective.type=sft", "data.where={taste: [soft]}"), "data.where names", "taste"
    ),
    "no row of a taste": (
        lambda f: images(f, "learner.objective.type=sft", "data.where={finish: [none]}"), "no row is left", "data.where"
    ),
    "no source": (lambda _: [DPO], "learner.objective.type = dpo reads", "rollout.sampler.type = stepwise makes"),
    "no pairs": (lambda f: images(f, DPO), "learner.objective.type = dpo reads", "data.type = images gives single"),
    "no rollouts": (lambda f: images(f), "learner.objective.type = spo reads", "Set data.type to online"),
    "a reference that the loss has not": (
        final("learner.objective.type=simpo", "learner.reference_at=learner"), "learner.reference_at = learner with",
        "simpo, which has no reference",
    ),
    "negative lambda": (
        final("learner.objective.type=sft", "learner.objective.pixel.weight=-8"), "pixel.weight = -8 is negative",
        "Set it to 0, which leaves the term out, or more",
    ),
    "negative mu": (
        final("learner.objective.type=simpo", "learner.objective.pixel.weight=-2"), "pixel.weight = -2 is negative",
        "Set it to 0, which leaves the term out, or more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_one_clear_error_and_nothing_left(tmp_path, monkeypatch, capsys, name):
    def start(**_: object) -> None:
        pytest.fail("Ray was started for a run that cannot begin")

    monkeypatch.setattr(ray, "init", start)
    provoke, *words = BAD[name]
    (tmp_path / "data").mkdir()
    assert command.main([f"run.dir={tmp_path / 'runs' / 'run'}", *provoke(tmp_path / "data")]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and said.count("error: ") == 1 and all(word in said for word in words), said
    assert "Traceback" not in said and not (tmp_path / "runs" / "run").exists()
