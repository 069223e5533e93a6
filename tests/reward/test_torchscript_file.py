"""TorchScript archives as data: the tensors that torch.jit gives, and nothing of the program run."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from configs.scorers import AestheticScorer
from reward import build_scorer
from reward.open_clip_model import load_open_clip
from reward.torchscript_file import is_torchscript, read_torchscript
from reward.weights_file import read_weights
from rollout.geneval.colours import ColourClassifier
from tests.reward import published


def scripted(model: nn.Module, path: Path) -> Path:
    """`model` as a TorchScript archive: traced, as OpenAI's are, with its three sizes among the weights."""
    for name, size in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(size))
    example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.int64))
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # TorchScript is deprecated; OpenAI's file is what it is
        # DeepSpeed's ZeRO-3 leaves a Python function in its place for the rest of a process, which cannot be traced.
        patch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
        torch.jit.trace(model, example, check_trace=False).save(str(path))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """architecture.json, checkpoint.pt"""
    return published.write_open_clip(tmp_path_factory.mktemp("clip"), nested=False, quick_gelu=True)


@pytest.fixture(scope="module")
def archive(plain: tuple[str, Path]) -> Path:
    return scripted(published.plain_open_clip(*plain), plain[1].with_name("ViT.pt"))


def rewritten(archive: Path, path: Path, replacements: Mapping[str, bytes]) -> Path:
    """A copy in which every file whose path holds a key has that content instead."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = next((data for part, data in replacements.items() if part in name), None)
            new.writestr(name, old.read(name) if content is None else content)
    return path


def test_the_tensors_are_those_that_torch_reads(archive: Path, plain: tuple[str, Path]) -> None:
    assert is_torchscript(archive) and not is_torchscript(plain[1])
    found = read_torchscript(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = torch.jit.load(str(archive)).state_dict()
    assert found.keys() == wanted.keys()
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in wanted.items()
    )
    assert read_weights(archive).keys() == found.keys()


def test_models_load_from_it_as_from_plain_weights(archive: Path, plain: tuple[str, Path], tmp_path: Path) -> None:
    architecture, checkpoint = plain
    wanted, found = load_open_clip(architecture, checkpoint), load_open_clip(architecture, archive)
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), found.parameters(), strict=True))
    torch.save(published.head_state(24), tmp_path / "head.pth")
    images, clean = torch.rand(2, 3, 40, 32) * 2 - 1, torch.zeros(2, dtype=torch.int64)
    scores = [
        build_scorer(
            AestheticScorer(checkpoint=str(file), head=str(tmp_path / "head.pth"), architecture=architecture)
        ).score(images, ["", ""], clean)
        for file in (checkpoint, archive)
    ]
    assert torch.equal(*scores)
    classifier = ColourClassifier.from_pretrained(archive, architecture=architecture)
    assert torch.equal(classifier._model.visual.proj, wanted.visual.proj)


def test_half_precision_is_widened(plain: tuple[str, Path], tmp_path: Path) -> None:
    model = published.plain_open_clip(*plain)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    halves = {name: tensor.half() for name, tensor in model.state_dict().items()}

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in halves.items():
                self.register_buffer(name.replace(".", "|"), tensor)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Holder()).save(str(tmp_path / "half.pt"))
    found = read_torchscript(tmp_path / "half.pt")
    assert {name.replace("|", ".") for name in found} == halves.keys()
    assert all(tensor.dtype == torch.float16 for tensor in found.values())
    assert all(torch.equal(found[name.replace(".", "|")], tensor) for name, tensor in halves.items())


def test_the_program_is_not_opened(archive: Path, tmp_path: Path) -> None:
    broken = rewritten(archive, tmp_path / "broken.pt", {"/code/": b"this is no program"})
    with pytest.raises(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(broken))
    found, wanted = read_torchscript(broken), read_torchscript(archive)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_what_asks_for_anything_but_tensors_is_refused_by_name(archive: Path, tmp_path: Path) -> None:
    evil = rewritten(archive, tmp_path / "evil.pt", {"/data.pkl": pickle.dumps({"weight": Malicious()}, protocol=2)})
    with pytest.raises(ValueError, match=r"evil\.pt cannot be read .*: it asks for posix\.system, which no checkpoint"):
        read_weights(evil)
    empty = rewritten(archive, tmp_path / "empty.pt", {"/data.pkl": pickle.dumps({}, protocol=2)})
    with pytest.raises(ValueError, match=r"empty\.pt is a TorchScript archive without tensors"):
        read_weights(empty)
    short = rewritten(archive, tmp_path / "short.pt", {"/data/3": b"\0" * 8})
    with pytest.raises(ValueError, match=r"short\.pt cannot be read"):
        read_weights(short)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"cut\.pt cannot be read \(truncated"):
        read_weights(cut)


def test_an_archive_of_another_model_is_refused_by_its_names(plain: tuple[str, Path], tmp_path: Path) -> None:
    other = {**published.ARCHITECTURE, "quick_gelu": True}
    other["vision_cfg"] = {**published.ARCHITECTURE["vision_cfg"], "layers": 3}
    path = scripted(CLIP(**other).eval(), tmp_path / "other.pt")
    with pytest.raises(
        ValueError, match=r"other\.pt .*does not fit CLIP: 12 unexpected: visual\.transformer\.resblocks"
    ):
        load_open_clip(plain[0], path)


def test_a_module_that_unpacks_itself_is_refused(tmp_path: Path) -> None:
    class OwnState(nn.Module):
        @torch.jit.export
        def __getstate__(self) -> tuple[torch.Tensor, bool]:
            return torch.zeros(2), self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
            self.training = state[1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(OwnState()).save(str(tmp_path / "own.pt"))
    with pytest.raises(ValueError, match=r"own\.pt cannot be read .*__setstate__ of its own"):
        read_weights(tmp_path / "own.pt")
