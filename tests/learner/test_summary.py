"""summary.json: exactly its fields, books that close, written whole; and the closing words."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from configs.model import ModelSection
from learner.results import without_effect
from learner.summary import Summary, closing_text, read_summary, write_summary
from rollout.eval_result import EvalResult
from rollout.intervals import Interval

FIELDS = {
    "steps": 120,
    "wall_sec": 250.5,
    "groups": {"produced": 110, "trained": 96, "dropped": {"stale": 4}, "queued": 10},
    "pairs_trained": 900,
    "reward": {"first": 20.5, "last": 21.5},
    "eval": {
        "scorer": "pickscore-v1-3f2a91c0-224px-crop",
        "before": {"reward": 20.5, "judge/crisp": 0.25},
        "after": {"reward": 21.5, "judge/crisp": 0.75},
    },
    "peak_memory_bytes": {"learner": 2_000_000_000, "rollout": 1_000_000_000},
    "adapter_sha256": "ab" * 32,
    "without_effect": None,
    "data": None,
}


def test_the_file_holds_exactly_the_fields(tmp_path: Path) -> None:
    path = write_summary(tmp_path, Summary.model_validate(FIELDS))
    assert path == tmp_path / "summary.json"
    assert json.loads(path.read_text()) == FIELDS
    assert read_summary(path) == Summary.model_validate(FIELDS)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_second_summary_replaces_the_first_and_a_failed_one_leaves_it(tmp_path: Path) -> None:
    write_summary(tmp_path, Summary.model_validate(FIELDS))
    path = write_summary(tmp_path, Summary.model_validate({**FIELDS, "steps": 121}))
    assert read_summary(path).steps == 121
    with pytest.raises(ValidationError, match="steps"):
        write_summary(tmp_path, Summary.model_validate({**FIELDS, "steps": -1}))
    assert read_summary(path).steps == 121


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {**FIELDS["groups"], "queued": 9}}, "110 produced, but 96 trained .* 4 dropped .* 9 queued = 109"),
        ({"adapter_sha256": "abc"}, "adapter_sha256"),
        ({"pairs_trained": 1.5}, "pairs_trained"),
        ({"reward": {"first": 1.0}}, "reward.last"),
        ({"extra": 1}, "extra"),
        ({"eval": {"before": {}}}, "eval.after"),
    ],
)
def test_what_is_missing_wrong_or_does_not_add_up_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Summary.model_validate({**FIELDS, **change})


def test_a_run_that_ended_in_nan_still_has_a_summary_that_json_readers_take(tmp_path: Path) -> None:
    path = write_summary(tmp_path, Summary.model_validate({**FIELDS, "reward": {"first": 1.0, "last": math.nan}}))
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict["reward"]["last"] == "NaN"
    assert math.isnan(read_summary(path).reward.last)


def test_the_closing_text_says_where_everything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    (tmp_path / "base").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "tensorboard").touch()
    run_dir = tmp_path / "runs" / "quickstart"
    text = closing_text(
        run_dir,
        Summary.model_validate(FIELDS),
        base=ModelSection(pretrained=str(tmp_path / "base")),
        grid=run_dir / "before_after.png",
        lora=Path("runs/quickstart/lora"),
        checkpoints=run_dir / "checkpoints",
        differences={"judge/crisp": Interval(0.5, 0.375, 0.625, 64)},
        drift={"appearance/saturation": 12.25, "diversity/across_vendi": -0.5},
    )
    assert "Changes of the pictures from the starting model" in text
    assert "  appearance/saturation   +12.25\n  diversity/across_vendi  -0.5\n" in text
    assert "Finished 120 steps in 4m10s." in text
    assert "  judge/crisp       0.25 -> 0.75       (+0.5, 95 % interval +0.375 .. +0.625)" in text
    assert "  reward            20.5 -> 21.5\n" in text
    assert "\n  reward: the mean score of pickscore-v1-3f2a91c0-224px-crop\n" in text
    assert "  .venv/bin/tensorboard --logdir runs/quickstart/tb\n" in text
    for place in ("before_after.png", "lora", "checkpoints", "summary.json"):
        assert f"runs/quickstart/{place}\n" in text
    python = "\n".join(line.strip() for line in text.split("with diffusers:")[1].splitlines())
    compile(python, "closing", "exec")
    assert 'pipeline.load_lora_weights("runs/quickstart/lora")' in python
    assert 'from_pretrained("base")' in python
    assert str(tmp_path) not in text


def test_paths_elsewhere_are_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    places = {"grid": tmp_path / "g.png", "lora": tmp_path / "lora", "checkpoints": tmp_path / "c"}
    text = closing_text(
        tmp_path, Summary.model_validate(FIELDS), base=ModelSection(pretrained="x"), differences={}, **places
    )
    assert f"tensorboard --logdir {tmp_path}/tb" in text


def test_a_run_that_changed_nothing_says_so_first(tmp_path: Path) -> None:
    reason = "every B of its adapter is 0, no update reached it"
    places = {"grid": tmp_path / "g.png", "lora": tmp_path / "lora", "checkpoints": tmp_path / "c"}
    summary = Summary.model_validate({**FIELDS, "without_effect": reason})
    text = closing_text(tmp_path, summary, base=ModelSection(pretrained="x"), differences={}, **places)
    assert text.splitlines()[3] == f"WARNING: this run changed nothing: {reason}."


def test_what_counts_as_no_change() -> None:
    def result(level: int) -> EvalResult:
        return EvalResult({}, {}, np.full((2, 4, 4, 3), level, dtype=np.uint8), ("a", "b"))

    idle = {"layer.lora_A.weight": torch.ones(1, 2), "layer.lora_B.weight": torch.zeros(2, 1)}
    trained = {**idle, "layer.lora_B.weight": torch.ones(2, 1)}
    assert without_effect(idle, result(1), result(2)) == "every B of its adapter is 0, no update reached it"
    assert without_effect(trained, result(1), result(1)) == "its 2 evaluated pictures are exactly those from before"
    assert without_effect(trained, result(1), result(2)) is None


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        (
            {"family": "pixart"},
            ["from peft import PeftModel", 'from_pretrained(pipeline.transformer, "/run/lora/peft")'],
        ),
        (
            {"pretrained": "/m/sd.safetensors", "config": "/m/sd"},
            [
                'StableDiffusionPipeline.from_single_file("/m/sd.safetensors", config="/m/sd")',
                'load_lora_weights("/run',
            ],
        ),
        (
            {"family": "flux", "pretrained": "/m/flux.safetensors", "config": "/m/flux"},
            ['FluxPipeline.from_pretrained("/m/flux", transformer=FluxTransformer2DModel.from_single_file("/m/flux.s'],
        ),
    ],
)
def test_the_closing_lines_load_what_was_trained(tmp_path: Path, settings: dict, lines: list[str]) -> None:
    places = {"grid": tmp_path / "g.png", "lora": Path("/run/lora"), "checkpoints": tmp_path / "c"}
    text = closing_text(
        tmp_path, Summary.model_validate(FIELDS), base=ModelSection(**settings), differences={}, **places
    )
    code = text.split("with diffusers:")[1]
    assert all(line in code for line in lines), code
    compile("\n".join(line.strip() for line in code.splitlines()), "closing", "exec")
