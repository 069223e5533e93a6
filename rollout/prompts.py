"""Prompts: read from a file, and dealt out as an endless, seeded stream of ordinals.

    ordinal 0 1 2 ... n-1 | n ... 2n-1 | ...       each epoch of n is its own permutation of the n prompts

Ordinal, prompt and seed depend on the run's seed alone: not on which worker asks, and not on when.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout.assets import MINIATURE

if TYPE_CHECKING:
    from configs.learner import EvaluationSection

_BUNDLED_DIR = Path(__file__).parent / "miniature"
BUNDLED = {
    "miniature": _BUNDLED_DIR / "prompts_train.txt",
    "miniature-heldout": _BUNDLED_DIR / "prompts_heldout.txt",
}
_KEYS = ("caption", "prompt")
_SEED_BITS = 63  # torch.Generator takes a signed 64-bit integer


@dataclass(frozen=True)
class PromptItem:
    """One prompt of the stream."""

    ordinal: int
    prompt: str
    seed: int
    """Seed of all noise drawn for this prompt: a hash of the run's seed and the ordinal."""


class PromptStream:
    """The endless stream over `prompts`; any ordinal can be asked for, in any order."""

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        if not prompts:
            raise ValueError("the prompt stream needs at least one prompt")
        self._prompts = tuple(prompts)
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def __len__(self) -> int:
        return len(self._prompts)

    def item(self, ordinal: int) -> PromptItem:
        """The item at `ordinal` (0, 1, 2, ..); the prompts repeat, reshuffled, after every `len(self)`."""
        epoch, position = divmod(ordinal, len(self._prompts))
        prompt = self._prompts[self._order(epoch)[position]]
        return PromptItem(ordinal, prompt, stable_hash("seed", self._seed, ordinal) >> (64 - _SEED_BITS))

    def _epoch_order(self, epoch: int) -> list[int]:
        # Sorted by hash rather than random.shuffle, whose result Python does not promise to keep between versions.
        return sorted(range(len(self._prompts)), key=lambda index: stable_hash("order", self._seed, epoch, index))


def load_prompts(source: str, limit: int | None = None) -> tuple[str, ...]:
    """Read prompts: .txt one a line, .json a list, .jsonl one a line; entries are strings or {"caption"|"prompt": ..}.

    `miniature` and `miniature-heldout` are the bundled lists. Empty lines are skipped; `limit` keeps the first so many.
    Raises ValueError naming file and line (or entry) for anything else, and for a file without prompts.
    """
    path = BUNDLED.get(source, Path(source).expanduser())
    readers = {".txt": _read_txt, ".json": _read_json, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        known = ", ".join([*readers, *BUNDLED])
        raise ValueError(f"prompts.source = {source!r}: unknown kind {path.suffix!r}; expected one of {known}")
    prompts = tuple(readers[path.suffix](path, _read_text(path)))[:limit]
    if not prompts:
        raise ValueError(f"{path}: no prompts in this file")
    return prompts


def evaluation_prompts(settings: EvaluationSection) -> tuple[str, ...]:
    """The first `num_prompts` held-out prompts. Raises ValueError when there are fewer."""
    source = f"{MINIATURE}-heldout" if settings.prompts == MINIATURE else settings.prompts
    prompts = load_prompts(source, settings.num_prompts)
    if len(prompts) < settings.num_prompts:
        raise ValueError(
            f"evaluation.num_prompts is {settings.num_prompts}, but evaluation.prompts = {settings.prompts!r} "
            f"has {len(prompts)}; ask for fewer or give a longer list"
        )
    return prompts


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: prompts cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8 text") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Line number from 1, and text, of every line that is not empty."""
    for number, line in enumerate(text.split("\n"), start=1):
        if stripped := line.strip():
            yield number, stripped


def _read_txt(path: Path, text: str) -> Iterator[str]:
    for number, line in _lines(text):
        yield _checked(line, f"{path}:{number}")


def _read_jsonl(path: Path, text: str) -> Iterator[str]:
    for number, line in _lines(text):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error.msg} (column {error.colno})") from error
        yield _checked(entry, f"{path}:{number}")


def _read_json(path: Path, text: str) -> Iterator[str]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a JSON list of prompts, found {type(entries).__name__}")
    for number, entry in enumerate(entries, start=1):
        yield _checked(entry, f"{path}: entry {number}")


def _checked(entry: Any, where: str) -> str:
    value = entry
    if isinstance(entry, dict):
        value = next((entry[key] for key in _KEYS if key in entry), None)
        if value is None:
            raise ValueError(f"{where}: expected one of the keys {', '.join(_KEYS)}, found {sorted(entry) or 'none'}")
    if not isinstance(value, str):
        raise ValueError(f"{where}: a prompt must be text, found {type(value).__name__}")
    prompt = value.strip()
    if not prompt:
        raise ValueError(f"{where}: empty prompt")
    if control := next((char for char in prompt if ord(char) < 32 and char != "\t"), None):
        raise ValueError(f"{where}: control character {control!r} in a prompt")
    return prompt


def stable_hash(*parts: int | str) -> int:
    """A 64-bit hash that is the same on every machine and Python version."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
