"""LoRA files in the model that samples: checked against it, then loaded by diffusers' own `load_lora_weights`, or by
peft where the pipeline has no loader (PixArt).

Read is what diffusers reads: its own layout (`learner/export.py` writes it), kohya's, and those derived from them.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.model import ModelSection, NoiseSection
from rollout.assets import pipeline_path
from rollout.evaluation.peft_lora import attach, detach
from rollout.families import FAMILIES
from rollout.policy import DiffusionPolicy, resolve_dtype

BASE = "base"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_DOWN = re.compile(r"^(?:unet|transformer)\.(?P<layer>.+?)\.(?:lora_A|lora\.down|lora_down)\.weight$")
_UP = re.compile(r"\.(?:lora_B|lora\.up|lora_up)\.weight$")
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Candidate:
    """What is evaluated: the base, or the base with one LoRA."""

    name: str
    """Unique; names its folder of pictures."""
    file: Path | None
    """None: the base."""
    sha256: str
    """Of the LoRA file; `base` without one."""
    warnings: list[str] = field(default_factory=list)
    """What console and page are to say about it."""


def candidates(paths: Sequence[str]) -> list[Candidate]:
    """The base and one candidate a LoRA, each named after its file, its folder or, where those are generic, its run.

    Raises ValueError naming a path that holds no LoRA, is no safetensors file, changes nothing, or is given twice.
    """
    found = [Candidate(BASE, None, BASE)]
    for text in paths:
        file = find_lora(text)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if twin := next((other for other in found if other.sha256 == digest), None):
            raise ValueError(f"--lora {text}: the same weights as {twin.file}; give each LoRA once")
        found.append(Candidate(_unique(_name(file), [other.name for other in found]), file.resolve(), digest))
    return found


def find_lora(text: str) -> Path:
    """The safetensors file that a folder or path means: a folder's `pytorch_lora_weights.safetensors`, its `lora/`, or
    its only .safetensors file."""
    path = Path(text).expanduser()
    if path.is_file():
        return _readable(path)
    if not path.is_dir():
        raise ValueError(f"--lora {text}: no such file or folder")
    for file in (path / DIFFUSERS_FILE, path / "lora" / DIFFUSERS_FILE):
        if file.is_file():
            return _readable(file)
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        what = f"{len(files)} .safetensors files" if files else "no .safetensors file"
        raise ValueError(f"--lora {text}: {what} and no {DIFFUSERS_FILE}; name the file")
    return _readable(files[0])


class EvaluatedModel:
    """The base pipeline; `candidate` makes it the base or the base with one LoRA, and back."""

    def __init__(self, model: ModelSection, noise: NoiseSection, device: torch.device | str) -> None:
        """Raises what diffusers raises for a pipeline that cannot be read, ValueError for an unfit noise schedule."""
        self._model, self._noise, self._device = model, noise, torch.device(device)
        dtype = resolve_dtype(model.dtype, self._device)
        self._family = FAMILIES[model.family].load(
            pipeline_path(model.pretrained), dtype, network_only=False, model=model
        )
        self._pipeline: Any = self._family.pipeline
        self._loads_loras = hasattr(self._pipeline, "load_lora_weights")

    @contextmanager
    def candidate(self, candidate: Candidate) -> Iterator[DiffusionPolicy]:
        """Inside, a policy that samples this candidate.

        Raises ValueError when the LoRA was made for another model, naming the layer.
        """
        if candidate.file is None:
            yield self._policy()
            return
        self._load(candidate, candidate.file)
        try:
            yield self._policy()
        finally:
            self._unload()

    def _policy(self) -> DiffusionPolicy:
        shape = self._family.latent_shape(self._model.image_size)
        schedule = self._family.schedule(self._noise, shape)
        self._family.to(self._device)
        return DiffusionPolicy(self._family, schedule.to(self._device), self._noise, shape)

    def _load(self, candidate: Candidate, file: Path) -> None:
        where = f"LoRA {file}"
        state = self._read(file, where)
        check_layers(state, self._family.network, where, self._model.pretrained)
        try:
            if self._loads_loras:
                with _without_remarks():
                    self._pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
            else:
                attach(self._family.network, state, self._family.network_part)
        except (ValueError, RuntimeError) as error:
            self._unload()
            raise ValueError(
                f"{where} does not fit {self._model.pretrained}: {_first_line(error)}. Give the base it was made for"
            ) from error

    def _read(self, file: Path, where: str) -> dict[str, Tensor]:
        """The LoRA under diffusers' names. Raises ValueError where diffusers' converters know no such file."""
        if not self._loads_loras:
            return load_file(file)
        network = self._family.network
        extra = {"unet_config": network.config} if hasattr(self._pipeline, "unet") else {}
        try:
            found = self._pipeline.lora_state_dict(str(file.parent), weight_name=file.name, **extra)
        except Exception as error:  # diffusers' converters fail in many ways on what they do not know
            raise ValueError(f"{where}: not a LoRA that diffusers can read: {_first_line(error)}") from error
        return found[0] if isinstance(found, tuple) else found

    def _unload(self) -> None:
        if self._loads_loras:
            self._pipeline.unload_lora_weights()
        else:
            detach(self._family.network)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """diffusers remarks on every text encoder that a LoRA leaves alone."""
    remarks = logging.getLogger("diffusers.loaders.lora_base")
    level = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        yield
    finally:
        remarks.setLevel(level)


def check_layers(state: Mapping[str, Tensor], network: nn.Module, where: str, base: str) -> None:
    """Raises ValueError unless every layer of a LoRA in diffusers' names is in `network`, with as many inputs."""
    layers = {match["layer"]: tensor for key, tensor in state.items() if (match := _DOWN.match(key))}
    modules = dict(network.named_modules())
    if not layers:
        first = ", ".join(sorted(state)[:3]) or "none at all"
        raise ValueError(
            f"{where}: no LoRA weights of this family in it (tensors: {first}); was it made for another model family?"
        )
    if strange := sorted(name for name in layers if not isinstance(modules.get(name), nn.Linear | nn.Conv2d)):
        raise ValueError(
            f"{where} was made for another model: {len(strange)} of {len(layers)} layers do not exist in {base}, "
            f"first {strange[0]}. Give the base it was made for"
        )
    for name, down in sorted(layers.items()):
        module: Any = modules[name]
        if down.shape[1] != (wide := module.weight.shape[1]):
            raise ValueError(
                f"{where} was made for another model: layer {name} reads {down.shape[1]} channels there, {wide} in "
                f"{base}. Give the base it was made for"
            )


def _readable(file: Path) -> Path:
    try:
        with safe_open(file, framework="pt") as opened:
            ups = [key for key in opened.keys() if _UP.search(key)]  # noqa: SIM118 (no iterator of its own)
            idle = bool(ups) and not any(bool(opened.get_tensor(key).any()) for key in ups)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"--lora {file}: not a readable safetensors file: {_first_line(error)}") from error
    if idle:
        raise ValueError(
            f"--lora {file}: changes nothing: every up-projection (B) in it is zero. No update reached it when it was "
            "trained; leave it out"
        )
    return file


def _name(file: Path) -> str:
    parts = [file.stem, *(parent.name for parent in file.resolve().parents)]
    generic = {"pytorch_lora_weights", "lora", "kohya", ""}
    return _NAME.sub("-", next((part for part in parts if part not in generic), "lora"))


def _unique(name: str, taken: Sequence[str]) -> str:
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name}-{number}", number + 1
    return unique


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
