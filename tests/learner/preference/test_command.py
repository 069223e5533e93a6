"""What `python -m learner.train_spm` refuses before anything starts, by name, and what a dry run shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from learner.train_spm import main
from reward import MINIATURE
from tests.learner.preference.pairs import render_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_folder(tmp_path_factory.mktemp("pairs"), 12)


@pytest.fixture
def refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """refused(*overrides) -> the error's text; nothing is left behind."""
    file = tmp_path / "spm.yaml"
    file.write_text(f"run: {{dir: {tmp_path / 'run'}}}\ndata: {{source: {source}, held_out: 0.3}}\n")

    def message(*overrides: str) -> str:
        assert main(["--config", str(file), *overrides]) == 1
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    return message


def test_data_and_settings(refused, source: Path, tmp_path: Path) -> None:
    assert "error: none: no such file or directory" in refused("data.source=none")
    assert "data.where names column taste" in refused("data.where={taste: [crisp]}")
    assert "no row is left to train on" in refused("data.where={annotator: [nobody]}")
    assert "unknown key data.sourc; did you mean data.source?" in refused("data.sourc=x")
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    with (broken / "pairs.jsonl").open("a") as file:
        file.write('{"caption": "x"}\n')
    assert "pairs.jsonl line 13: image_0 is None" in refused(f"data.source={broken}")


def test_checkpoints(refused, tmp_path: Path) -> None:
    weights = (MINIATURE / "step_aware.safetensors").read_bytes()
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(weights[:100_000])
    assert "truncated.safetensors cannot be read (truncated" in refused(f"scorer.checkpoint={truncated}")
    assert "checkpoint gone.bin does not exist" in refused("scorer.checkpoint=gone.bin")


def test_tokenizers(refused, tmp_path: Path) -> None:
    weights = f"scorer.checkpoint={MINIATURE / 'step_aware.safetensors'}"
    clip = tmp_path / "clip"
    shutil.copytree(MINIATURE, clip)
    vocabulary = json.loads((clip / "vocab.json").read_text())
    vocabulary["extra"] = len(vocabulary)
    (clip / "vocab.json").write_text(json.dumps(vocabulary))
    assert "the model's vocab_size is" in refused(f"scorer.clip={clip}", weights)


def test_dry_run_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--config", "sd15_spm", "--dry-run", f"run.dir={tmp_path / 'run'}", "data.source=nowhere"]) == 0
    shown = capsys.readouterr().out
    assert "8000 steps of 1024 pairs, 4 rank(s), each 4 CPU, 1 GPU" in shown
    assert "yuvalkirstain/PickScore_v1" in shown
    assert not (tmp_path / "run").exists()
