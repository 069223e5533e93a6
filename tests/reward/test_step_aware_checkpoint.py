"""Checkpoints of the step-aware model: names, round trips, and every way in which one can be wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward.step_aware import StepAwarePreferenceModel
from reward.weights_file import write_weights

Make = Callable[[Path], StepAwarePreferenceModel]
POSITIONS = "model.text_model.embeddings.position_ids"


@pytest.fixture
def state(small_clip: Path, conditioned: Make) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in conditioned(small_clip).state_dict().items()}


def load(clip: Path, state: dict[str, torch.Tensor], path: Path) -> StepAwarePreferenceModel:
    save = save_file if path.suffix == ".safetensors" else torch.save
    save(state, path)
    return StepAwarePreferenceModel.from_pretrained(clip, path)


def test_names_are_those_of_the_released_checkpoints(small_clip: Path, tmp_path: Path) -> None:
    StepAwarePreferenceModel.from_pretrained(small_clip).save_checkpoint(tmp_path / "spm.safetensors")
    names = load_file(tmp_path / "spm.safetensors").keys()
    clip = {f"model.{name}" for name in load_file(small_clip / "model.safetensors")}
    modulated = ["vision_model", *(f"vision_model.encoder.layers.{n}" for n in range(2))]
    added = {f"model.{m}.adaLN_modulation.1.{kind}" for m in modulated for kind in ("weight", "bias")}
    added |= {f"model.t_embedder.mlp.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert set(names) == clip | added


@pytest.mark.parametrize("name", ["spm.safetensors", "pytorch_model.bin", "spm.pt"])
def test_round_trip_is_exact(small_clip: Path, state: dict[str, torch.Tensor], tmp_path: Path, name: str) -> None:
    loaded = load(small_clip, state, tmp_path / name).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_save_load_save_is_byte_identical(small_clip: Path, conditioned: Make, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "spm.safetensors", tmp_path / "b" / "spm.safetensors"
    conditioned(small_clip).save_checkpoint(first)
    StepAwarePreferenceModel.from_pretrained(small_clip, first).save_checkpoint(second)
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["spm.safetensors"]


def test_checkpoint_needs_only_the_config(small_clip: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    shutil.copy(small_clip / "config.json", tmp_path / "config.json")
    loaded = load(tmp_path, state, tmp_path / "spm.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_half_precision_checkpoint_becomes_float32(
    small_clip: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    halves = {name: tensor.half() for name, tensor in state.items()}
    loaded = load(small_clip, halves, tmp_path / "spm.bin").state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())
    assert all(torch.equal(loaded[name], halves[name].float()) for name in halves)


def test_missing_names_are_listed(small_clip: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    gone = ["model.t_embedder.mlp.2.bias", "model.vision_model.adaLN_modulation.1.weight"]
    for name in gone:
        del state[name]
    with pytest.raises(ValueError, match=r"spm.bin does not fit .*2 missing: " + ", ".join(gone)):
        load(small_clip, state, tmp_path / "spm.bin")


def test_plain_clip_is_no_step_aware_checkpoint(small_clip: Path) -> None:
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more; .*unexpected: "):
        StepAwarePreferenceModel.from_pretrained(small_clip, small_clip / "model.safetensors")


def test_unexpected_name_is_an_error(small_clip: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state["model.head.weight"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"1 unexpected: model\.head\.weight"):
        load(small_clip, state, tmp_path / "spm.safetensors")


def test_buffers_that_older_versions_stored(small_clip: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    vision = "model.vision_model.embeddings.position_ids"
    state |= {POSITIONS: torch.arange(16)[None], vision: torch.arange(17)[None]}
    load(small_clip, state, tmp_path / "equal.bin")
    with pytest.raises(ValueError, match=f"1 unexpected: {POSITIONS}"):
        load(small_clip, {**state, POSITIONS: torch.arange(16)[None] + 1}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match=f"1 unexpected: {POSITIONS}"):
        load(small_clip, {**state, POSITIONS: torch.arange(77)[None]}, tmp_path / "longer.bin")


def test_checkpoint_of_another_size(clip_dirs: dict[str, Path], state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of another shape: model.*class_embedding \[48\] for \[64\]"):
        load(clip_dirs["large"], state, tmp_path / "spm.safetensors")


@pytest.mark.parametrize("name", ["spm.safetensors", "spm.bin"])
@pytest.mark.parametrize("kept", [0, 4, 2000, -100])
def test_truncated(small_clip: Path, state: dict[str, torch.Tensor], tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / name
    load(small_clip, state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        StepAwarePreferenceModel.from_pretrained(small_clip, path)


class Trap:
    """Unpickling it would create the file `sprung`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.folder / "sprung",)


def test_pickled_code_is_not_run(small_clip: Path, tmp_path: Path) -> None:
    torch.save({"model.logit_scale": Trap(tmp_path)}, tmp_path / "spm.bin")
    with pytest.raises(ValueError, match=r"spm\.bin cannot be read .* Python objects .* \.safetensors$"):
        StepAwarePreferenceModel.from_pretrained(small_clip, tmp_path / "spm.bin")
    assert not (tmp_path / "sprung").exists()


def test_nested_mapping_is_refused(small_clip: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"model": state, "step": 3}, tmp_path / "spm.bin")
    with pytest.raises(ValueError, match="not a flat mapping"):
        StepAwarePreferenceModel.from_pretrained(small_clip, tmp_path / "spm.bin")


def test_absent_and_of_another_kind(small_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.bin does not exist"):
        StepAwarePreferenceModel.from_pretrained(small_clip, tmp_path / "none.bin")
    with pytest.raises(FileNotFoundError, match=r"CLIP .*nowhere does not exist; give a folder"):
        StepAwarePreferenceModel.from_pretrained(tmp_path / "nowhere", tmp_path / "none.bin")
    (tmp_path / "weights.onnx").touch()
    with pytest.raises(ValueError, match=r"expected \.safetensors"):
        StepAwarePreferenceModel.from_pretrained(small_clip, tmp_path / "weights.onnx")


def test_incomplete_or_truncated_clip(small_clip: Path, tmp_path: Path) -> None:
    shutil.copy(small_clip / "config.json", tmp_path / "config.json")
    weights = load_file(small_clip / "model.safetensors")
    del weights["vision_model.post_layernorm.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"incomplete: missing vision_model\.post_layernorm\.bias"):
        StepAwarePreferenceModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((small_clip / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be read"):
        StepAwarePreferenceModel.from_pretrained(tmp_path)


def test_a_written_file_has_the_permissions_of_any_new_file(small_clip: Path, tmp_path: Path) -> None:
    StepAwarePreferenceModel.from_pretrained(small_clip).save_checkpoint(tmp_path / "w.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_failed_write_leaves_the_old_file(small_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "spm.safetensors"
    path.write_bytes(b"old")
    shared = torch.nn.Linear(2, 2)
    shared.other = shared.weight  # safetensors refuses tensors that share memory
    with pytest.raises(RuntimeError):
        write_weights(shared, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
