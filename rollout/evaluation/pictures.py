"""Pictures on disk: sampled once, found again by a key in each PNG, so that an interrupted evaluation goes on.

    OUT/sampling.json              settings, prompts, LoRA checksums; another evaluation cannot share the folder
    OUT/images/<candidate>/0000.png   picture n: prompt n, seed + n; its PNG text says prompt, seed and key
Shapes: N pictures, uint8 [N, h, w, 3].
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from rollout.evaluation.lora import Candidate
from rollout.evaluation.settings import conflicts, first_difference, picture_key
from rollout.evaluator import to_uint8
from rollout.policy import DiffusionPolicy
from rollout.sampling import sample_images

SAMPLING_FILE = "sampling.json"
Progress = Callable[[str, int, int], None]
"""(candidate, pictures done, of how many)"""


@dataclass(frozen=True)
class PictureFolder:
    """One evaluation's pictures. Build it with `open_folder`."""

    root: Path
    settings: dict[str, Any]
    prompts: tuple[str, ...]

    @property
    def seeds(self) -> range:
        start = self.settings["seed"]
        return range(start, start + len(self.prompts))

    def path(self, candidate: Candidate, number: int) -> Path:
        return self.root / "images" / candidate.name / f"{number:04d}.png"

    def missing(self, candidate: Candidate) -> list[int]:
        """Numbers of the pictures that are not on disk whole, or were sampled otherwise."""
        return [n for n in range(len(self.prompts)) if _stored_key(self.path(candidate, n)) != self._key(candidate, n)]

    def sample(self, candidate: Candidate, policy: DiffusionPolicy, batch_size: int, progress: Progress) -> None:
        """Sample what is missing, batch by batch; each file appears whole or not at all."""
        todo, total = self.missing(candidate), len(self.prompts)
        done = total - len(todo)
        for start in range(0, len(todo), batch_size):
            numbers = todo[start : start + batch_size]
            prompts, seeds = [self.prompts[n] for n in numbers], [self.seeds[n] for n in numbers]
            images = to_uint8(sample_images(policy, prompts, seeds, batch_size=batch_size))
            for n, image in zip(numbers, images, strict=True):
                self._write(candidate, n, image)
            done += len(numbers)
            progress(candidate.name, done, total)

    def load(self, candidate: Candidate) -> np.ndarray:
        """All pictures of a candidate, in order."""
        return np.stack([np.asarray(Image.open(self.path(candidate, n))) for n in range(len(self.prompts))])

    def _key(self, candidate: Candidate, number: int) -> str:
        return picture_key(self.settings, candidate.sha256, self.prompts[number], self.seeds[number])

    def _write(self, candidate: Candidate, number: int, image: np.ndarray) -> None:
        text = PngImagePlugin.PngInfo()
        text.add_itxt("prompt", self.prompts[number])
        text.add_text("seed", str(self.seeds[number]))
        text.add_text("atelier_key", self._key(candidate, number))
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG", pnginfo=text)
        write_whole(self.path(candidate, number), buffer.getvalue())


def open_folder(
    root: Path, settings: dict[str, Any], prompts: Sequence[str], found: Sequence[Candidate]
) -> PictureFolder:
    """The folder for this evaluation, new or begun. A longer or shorter prompt list with the same start goes on in it.

    Raises ValueError naming each setting, prompt or LoRA that differs from what the folder's pictures were made with.
    """
    file = root / SAMPLING_FILE
    record: dict[str, Any] = {"settings": settings, "prompts": list(prompts), "candidates": {}}
    if file.exists():
        record = _merged(file, settings, prompts)
    elif root.exists() and any(root.iterdir()):
        raise ValueError(f"--out {root}: not empty, and not an evaluation (no {SAMPLING_FILE}); give a new folder")
    for candidate in found:
        if record["candidates"].setdefault(candidate.name, candidate.sha256) != candidate.sha256:
            raise ValueError(
                f"--out {root}: its pictures of {candidate.name!r} are of a LoRA with sha256 "
                f"{record['candidates'][candidate.name][:12]}, now it is {candidate.sha256[:12]}; give a new folder"
            )
    write_json(file, record)
    return PictureFolder(root, settings, tuple(prompts))


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """float32 [N, 3, h, w] in [-1, 1] of uint8 [N, h, w, 3]: what scorers and measures read."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def write_whole(path: Path, data: bytes) -> None:
    """The file is complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(data)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """The value as indented JSON, complete or not there. Raises ValueError for numbers that are not finite."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _merged(file: Path, settings: dict[str, Any], prompts: Sequence[str]) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        stored, known = record["settings"], record["prompts"]
        assert isinstance(record["candidates"], dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{file}: damaged ({error}); give a new --out folder") from error
    if differing := conflicts(stored, settings):
        raise ValueError(
            f"--out {file.parent} holds pictures sampled with other settings ({'; '.join(differing)}); "
            f"give a new folder, or the same settings"
        )
    if (number := first_difference(known, prompts)) is not None:
        raise ValueError(
            f"--out {file.parent} holds pictures of other prompts: number {number} is {known[number]!r} there, "
            f"{prompts[number]!r} now; give a new folder"
        )
    record["prompts"] = max(known, list(prompts), key=len)
    return record


def _stored_key(path: Path) -> str | None:
    """The key in a PNG that can be read to its end, else None."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.info.get("atelier_key")
    except (FileNotFoundError, UnidentifiedImageError, OSError, SyntaxError):
        return None
