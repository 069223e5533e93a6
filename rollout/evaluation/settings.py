"""What pictures an evaluation samples, and the proof that a folder's pictures were sampled that way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.load import build_config
from configs.model import FLOW_FAMILIES, ModelSection, NoiseSection
from configs.yaml_io import parse, problem
from rollout.assets import MINIATURE, pipeline_path
from rollout.prompts import load_prompts

_EDGE_BYTES = 64 * 1024
_ETA, _NOISE_LEVEL = 1.0, 0.7
GUIDANCE = {"sd": 5.0, "sdxl": 5.0, "pixart": 4.5, "sd3": 4.5, "flux": 3.5}
"""Family -> guidance scale, as in the presets, which name the sources."""


@dataclass(frozen=True)
class SamplingSettings:
    """Everything that a picture depends on beside its prompt, its number and the LoRA. Stored beside every score."""

    base: str
    """Directory or hub id of the pipeline, or `miniature`."""
    family: str = "sd"
    seed: int = 20_000
    """Seed of the first picture's noise; picture n uses seed + n."""
    steps: int = 20
    """Papers: 20."""
    guidance: float | None = None
    """Unset: the family's (papers, sd and sdxl: 5)."""
    eta: float | None = None
    """Of DDIM. Unset: 1 (papers)."""
    noise_level: float | None = None
    """Of a flow-matching step (SD3, FLUX). Unset: 0.7 (Flow-GRPO)."""
    negative_prompt: str = ""
    dtype: str = "auto"
    image_size: int | None = None
    config: str | None = None
    vae: str | None = None
    t5: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for a setting that the family's step does not have."""
        unread, reads = ("eta", "noise_level") if self.flow else ("noise_level", "eta")
        if getattr(self, unread) is not None:
            raise ValueError(
                f"--{unread.replace('_', '-')} {getattr(self, unread):g}: family {self.family} does not read it; how "
                f"random its steps are is --{reads.replace('_', '-')}"
            )
        for name, value in (("guidance", GUIDANCE[self.family]), (reads, _NOISE_LEVEL if self.flow else _ETA)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def flow(self) -> bool:
        """Whether the family takes flow-matching steps."""
        return self.family in FLOW_FAMILIES

    def model(self) -> ModelSection:
        """The base as a configuration section. Raises ConfigError naming the field."""
        return self._config().model

    def noise(self) -> NoiseSection:
        """The denoising step as a configuration section. Raises ConfigError naming the field."""
        return self._config().noise

    def to_json(self) -> dict[str, Any]:
        """With the sampler's name, and the base's fingerprint, so that an exchanged base is noticed.

        Left out is what the family does not read, and, so that folders begun earlier go on, what is as it always was.
        """
        stored = asdict(self)
        del stored["eta" if self.flow else "noise_level"]
        for name, usual in (("config", None), ("vae", None), ("t5", True)):
            if stored[name] == usual:
                del stored[name]
        sampler = "flow_sde" if self.flow else "ddim"
        return {**stored, "sampler": sampler, "base_fingerprint": fingerprint(pipeline_path(self.base))}

    def _config(self) -> Any:
        model = {name: getattr(self, name) for name in ("family", "dtype", "image_size", "config", "vae", "t5")}
        noise = {
            "num_steps": self.steps,
            "guidance_scale": self.guidance,
            "negative_prompt": self.negative_prompt,
            **({"flow_noise_level": self.noise_level} if self.flow else {"eta": self.eta}),
        }
        model["pretrained"] = self.base
        return build_config({"model": model, "noise": noise}, source="evaluation settings")


def fingerprint(path: str | Path) -> str:
    """16 hex digits over names, sizes and both ends (64 KiB) of a file, or of every file in a folder.

    What is not on this disk (a hub id) has the fingerprint `unknown`.
    """
    root = Path(path).expanduser()
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    if not root.exists():
        return "unknown"
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        name = file.relative_to(root).as_posix() if root.is_dir() else ""
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_EDGE_BYTES))
            opened.seek(max(0, size - _EDGE_BYTES))
            digest.update(opened.read(_EDGE_BYTES))
    return digest.hexdigest()[:16]


def evaluation_prompts(source: str, count: int | None, repeats: int = 1) -> tuple[str, ...]:
    """The first `count` prompts of a file (`miniature`: the bundled held-out list), the whole list `repeats` times.

    Raises ValueError naming file and line for a broken file, and when it has fewer than `count`.
    """
    prompts = load_prompts(f"{MINIATURE}-heldout" if source == MINIATURE else source, count)
    if count is not None and len(prompts) < count:
        raise ValueError(
            f"--num-prompts {count}: {source} has only {len(prompts)}; ask for fewer or give a longer list"
        )
    return prompts * repeats


def parse_scorer(text: str) -> Any:
    """The scorer section behind one `--scorers` value, checked like `rollout.scorer` in a configuration.

    `step_aware`; `step_aware:clip=PATH,checkpoint=PATH`; or a YAML mapping, `{type: step_aware, clip: PATH}`.
    Raises ValueError naming the value, the reason and the fix.
    """
    try:
        fields = parse(text) if text.lstrip().startswith("{") else _fields(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--scorers {text!r}: {problem(error)}") from error
    return build_config({"rollout": {"scorer": fields}}, source=f"--scorers {text}").rollout.scorer


def _fields(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    fields: dict[str, Any] = {"type": kind.strip()}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--scorers {text!r}: expected key=value after the colon, found {part!r}")
        fields[key.strip()] = parse(value)
    return fields


def conflicts(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """`key: stored -> wanted` for every sampling setting that differs."""
    keys = sorted(stored.keys() | wanted.keys())
    return [f"{key}: {stored.get(key)!r} -> {wanted.get(key)!r}" for key in keys if stored.get(key) != wanted.get(key)]


def first_difference(stored: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Number of the first prompt that differs where both lists have one, or None."""
    return next((n for n, (a, b) in enumerate(zip(stored, wanted, strict=False)) if a != b), None)


def picture_key(settings: dict[str, Any], candidate: str, prompt: str, seed: int) -> str:
    """64 hex digits over everything that a picture depends on; written into its PNG."""
    text = json.dumps([settings, candidate, prompt, seed], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
