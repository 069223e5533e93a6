"""The proof run: the command trains a preference model from random weights on two ranks until it knows crisp."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from configs.load import dump_config
from configs.spm import SpmConfig
from learner.committed import list_committed
from learner.preference.train import train_preference
from reward import MINIATURE
from tests.learner.inprocess import Telemetry
from tests.learner.preference.pairs import render_folder, spm_config, weights
from tests.learner.ranks import run_ranks


def fresh_clip(folder: Path) -> Path:
    """The miniature's CLIP with random weights and its own tokenizer: it knows nothing about pictures yet."""
    from transformers import CLIPConfig, CLIPTokenizer

    torch.manual_seed(0)
    CLIPModel(CLIPConfig.from_pretrained(MINIATURE)).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(MINIATURE).save_pretrained(folder)
    return folder


def proof_config(folder: Path, source: Path, ranks: int, **training: object) -> SpmConfig:
    settings = {"ranks": ranks, "micro_batch_pairs": 16 // ranks, "accumulation": 1, "max_steps": 60, **training}
    return spm_config(
        source,
        folder,
        base={"guidance_scale": 1.0},
        scorer={"clip": str(folder.parent / "clip")},
        training=settings,
        validation={"num_pairs": 64, "timesteps": [0]},
    )


def body(rank: int, world: int, config: SpmConfig) -> tuple[float, float]:
    telemetry = Telemetry() if rank == 0 else None
    result = train_preference(rank, world, config, telemetry, device=torch.device("cpu"))
    return result.start_accuracy[0], result.accuracy[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_learn_from_random_weights(tmp_path: Path) -> None:
    fresh_clip(tmp_path / "clip")
    source = render_folder(tmp_path / "pairs", 400)
    config = proof_config(tmp_path / "two", source, 2)
    first, second = run_ranks(2, tmp_path, body, config)
    assert first == second, "both ranks know the whole accuracy"
    print(f"accuracy on clean pairs {first[0]:.3f} -> {first[1]:.3f}")
    assert first[1] > 0.75


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_trains_on_two_ranks_under_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from learner.train_spm import main

    source = render_folder(tmp_path / "pairs", 24)
    file = tmp_path / "spm.yaml"
    config = spm_config(source, tmp_path / "run", training={"ranks": 2, "micro_batch_pairs": 1})
    file.write_text(dump_config(config))
    arguments = ["--config", str(file), "training.resources.cpus=0.5", "--address", "local"]
    assert main(arguments) == 0, capsys.readouterr()
    assert "Finished 2 steps" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert weights(tmp_path / "run")
    assert main(arguments) == 1 and "holds a run already" in capsys.readouterr().err
    assert main([*arguments, "training.max_steps=3", "--resume"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["counters"]["step"] == 3
    assert summary["start_accuracy"]["701"] == lines[0]["eval/accuracy_t701"], "before the first step of all"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_ends_the_command_with_the_way_to_go_on(tmp_path: Path) -> None:
    source = render_folder(tmp_path / "pairs", 24)
    config = spm_config(source, tmp_path / "run", training={"max_steps": 500}, checkpoint={"every_steps": 1})
    file = tmp_path / "spm.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-m", "learner.train_spm", "--config", str(file), "--address", "local"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("step "):
                process.send_signal(signal.SIGTERM)
                break
        said += process.stdout.readlines()
        assert process.wait() == 143, "".join(said)
    assert "Stopped by SIGTERM; go on from the last checkpoint with: python -m learner.train_spm" in "".join(said)
    assert list_committed(tmp_path / "run") and "Traceback" not in "".join(said)
