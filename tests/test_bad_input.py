"""Bad input through the command itself: one clear error, status 1, before Ray or a model, and nothing on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from learner import main as command
from tests.learner.command import Command, tiny_settings
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(tmp_path_factory.mktemp("bad-input"))


def prompts(folder: Path, data: bytes, name: str) -> str:
    (folder / name).write_bytes(data)
    return f"prompts.source={folder / name}"


def lora(folder: Path, **tensors: torch.Tensor) -> str:
    save_file({f"unet.{name}": tensor for name, tensor in tensors.items()}, folder / "other.safetensors")
    return f"model.init_lora={folder / 'other.safetensors'}"


def in_the_way(folder: Path) -> str:
    (folder / "file").write_text("no directory")
    return f"run.dir={folder / 'file' / 'run'}"


def cut_short(folder: Path, part: str, share: float) -> str:
    """The first share of a file, as a download that broke off leaves it."""
    pipeline = tiny_pipeline(folder / "pipeline")
    [weights] = (pipeline / part).glob("*.safetensors")
    os.truncate(weights, int(share * weights.stat().st_size))
    return f"model.pretrained={pipeline}"


def scorer(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return f"rollout.scorer.checkpoint={folder / name}"


def pickled_network(folder: Path) -> str:
    """A pipeline whose network is in torch's own format, and cut short."""
    pipeline = tiny_pipeline(folder / "pipeline")
    [weights] = (pipeline / "unet").glob("*.safetensors")
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    os.truncate(weights.with_suffix(".bin"), weights.with_suffix(".bin").stat().st_size // 2)
    return f"model.pretrained={pipeline}"


BAD = {
    "unknown key": (lambda _: "learner.optimiser.lr=1", "did you mean learner.optimizer"),
    "wrong type": (lambda _: "learner.ranks=two", "learner.ranks = 'two': a whole number is wanted"),
    "out of range": (lambda _: "learner.optimizer.lr=-1", "learner.optimizer.lr = -1: it must be above 0"),
    "k = 1": (lambda _: "rollout.sampler.num_candidates=1", "num_candidates = 1: it must be at least 2"),
    "eta = 0": (lambda _: "noise.eta=0", "noise.eta = 0: it must be above 0"),
    "kappa above 1000": (lambda _: "rollout.sampler.kappa=1001", "kappa = 1001: it must be at most 1000"),
    "kappa below 0": (lambda _: "rollout.sampler.kappa=-1", "kappa = -1: it must be at least 0"),
    "block too long": (lambda _: "rollout.sampler.block_length=99", "block_length = 99 is longer than the"),
    "no prompts": (lambda folder: prompts(folder, b"\n\n", "p.txt"), "p.txt: no prompts in this file"),
    "no prompt file": (lambda _: "prompts.source=/nowhere/p.txt", "/nowhere/p.txt: prompts cannot be read"),
    "broken line of text": (lambda folder: prompts(folder, b"a disc\na \xff\n", "p.txt"), "p.txt:2: not UTF-8 text"),
    "broken line of JSON": (lambda folder: prompts(folder, b'"a disc"\n\n{\n', "p.jsonl"), "p.jsonl:3: not JSON"),
    "no text in a line": (lambda folder: prompts(folder, b'"a"\n7\n', "p.jsonl"), "p.jsonl:2: a prompt must be text"),
    "no model": (lambda _: "model.pretrained=/nowhere/model", "model.pretrained /nowhere/model: there is no such file"),
    "foreign directory": (
        lambda folder: f"model.pretrained={folder}",
        ": no model_index.json there; it is not a diffusers pipeline",
    ),
    "network cut short": (
        lambda folder: cut_short(folder, "unet", 0.99),
        "unet/diffusion_pytorch_model.safetensors: cannot be read (truncated",
    ),
    "text encoder cut within its header": (
        lambda folder: cut_short(folder, "text_encoder", 0.001),
        "text_encoder/model.safetensors: cannot be read (truncated",
    ),
    "network of torch's own format cut short": (
        pickled_network,
        "unet/diffusion_pytorch_model.bin: cannot be read (truncated",
    ),
    "scorer cut short": (
        lambda folder: scorer(folder, "spm.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"),
        "spm.safetensors: cannot be read (truncated",
    ),
    "a page in place of a scorer": (
        lambda folder: scorer(folder, "spm.bin", b"<html>sign in</html>"),
        "rollout.scorer.checkpoint",
    ),
    "no scorer": (lambda _: "rollout.scorer.clip=/nowhere/clip", "rollout.scorer.clip = /nowhere/clip: there is no"),
    "another family": (lambda _: "model.family=sdxl", "holds a StableDiffusionPipeline, which is another family"),
    "a file without configuration": (lambda _: "model.pretrained=/nowhere/sd.safetensors", "in model.config"),
    "foreign layers": (lambda _: "model.lora.target_modules=[to_x]", "model.lora.target_modules = ['to_x']"),
    "no adapter": (lambda _: "model.init_lora=/nowhere/lora", "model.init_lora = /nowhere/lora: no LoRA there"),
    "adapter of another model": (
        lambda folder: lora(folder, **{"elsewhere.lora_A.weight": torch.zeros(4, 8)}),
        "tensors differ from this adapter's",
    ),
    "no directory": (in_the_way, "cannot be written: Not a directory"),
    "nothing to resume": (lambda folder: f"--resume={folder}", "no committed checkpoint here"),
    "no cluster": (lambda _: "--address=127.0.0.1:1", "no Ray cluster at '127.0.0.1:1'"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_clear_error_and_nothing_left(settings, tmp_path, monkeypatch, capsys, name):
    def start(**_: object) -> None:
        pytest.fail("Ray was started for a run that cannot begin")

    monkeypatch.setattr(ray, "init", start)
    provoke, words = BAD[name]
    given = provoke(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()  # what the preparation printed
    assert command.main([*settings, f"run.dir={tmp_path / 'runs' / 'run'}", given]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and said.count("error: ") == 1 and words in said, said
    assert "Traceback" not in said
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "runs"] == before, "nothing half-written"


def test_a_network_that_is_trained_whole_has_no_layers_to_choose(settings, tmp_path, capsys):
    given = [f"model.pretrained={tmp_path}", "model.trainable=full", "model.lora={}"]
    assert command.main([*settings, f"run.dir={tmp_path / 'runs' / 'run'}", *given]) == 1
    said = capsys.readouterr().err
    assert f"error: model.pretrained {tmp_path}: no model_index.json there" in said and "model.lora" not in said, said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("asked", "words"),
    [("cpus=4096", "CPU: 32768"), ("gpus=1", "GPU: 8 wanted")],
    ids=["CPUs", "GPUs"],
)
def test_more_than_the_cluster_has_is_refused_with_both_numbers(settings, tmp_path, asked, words):
    run = Command([*settings, "rollout.workers.initial=8", f"rollout.workers.resources.{asked}"], tmp_path / "run")
    status, output = run.finish()
    assert status == 1 and words in output and " in the cluster" in output, output
    assert "Traceback" not in output
    run.assert_no_orphans()
    assert not (tmp_path / "run").exists(), "nothing half-written"
