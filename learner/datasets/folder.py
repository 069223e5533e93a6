"""A folder of pairs: pictures in any files, and `pairs.jsonl`, one JSON object a line.

    {"caption": "a red disc", "image_0": "a/0.png", "image_1": "a/1.png", "preferred": 0, "annotator": "kim"}

image_0, image_1   picture files, relative to the folder
preferred          0 or 1, the better picture, or "tie"
weight             optional; unset: 1 / number of lines with the same caption
every other key    a tag (a text, number, true or false) that `data.where` can select by
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from learner.datasets.rows import DataError, PairRow, Selection

INDEX = "pairs.jsonl"
_OWN = ("caption", "image_0", "image_1", "preferred", "weight")
_SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


class FolderPairs:
    """Pairs listed in `folder/pairs.jsonl`, in the order of its lines."""

    def __init__(self, folder: Path, selection: Selection | None = None, *, problems: list[str] | None = None) -> None:
        """Read the list; pictures are read with their row.

        problems: takes one sentence for each bad line, which is then left out, instead of raising.

        Raises DataError for a folder without the list and for bad lines.
        """
        self._folder = folder
        lines = list(self._lines(problems))
        counts = Counter(line["caption"] for _, line in lines)
        selection = selection or Selection()
        selection.require_columns(sorted({name for _, line in lines for name in line}), str(folder / INDEX))
        self._kept = [
            (key, {"weight": 1 / counts[line["caption"]], **line})
            for key, line in lines
            if selection.keeps({**dict.fromkeys(selection.where), "has_label": True, "are_different": True, **line})
        ]

    def block_sizes(self) -> list[int]:
        """One block: any order costs the same here."""
        return [len(self._kept)] if self._kept else []

    def row(self, block: int, offset: int) -> PairRow:
        """The row of the `offset`-th line taken. Raises DataError naming line and file."""
        key, line = self._kept[offset]
        first = {0: 1.0, 1: 0.0, "tie": 0.5}[line["preferred"]]
        return PairRow(
            key=key,
            caption=line["caption"],
            image_0=self._picture(line["image_0"], f"{key}: image_0"),
            image_1=self._picture(line["image_1"], f"{key}: image_1"),
            label_0=first,
            label_1=1 - first,
            weight=float(line["weight"]),
            tags={name: str(value) for name, value in line.items() if name not in _OWN},
        )

    def _lines(self, problems: list[str] | None) -> Iterable[tuple[str, dict[str, Any]]]:
        path = self._folder / INDEX
        try:
            texts = path.read_text(encoding="utf-8").split("\n")  # splitlines() would cut a text at U+2028 too
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                continue
            key = f"{path} line {number}"
            try:
                yield key, _checked(text, key)
            except DataError as error:
                if problems is None:
                    raise
                problems.append(str(error))

    def _picture(self, name: str, what: str) -> bytes:
        file = (self._folder / name).resolve()
        if not file.is_relative_to(self._folder.resolve()):
            raise DataError(f"{what} = {name!r} lies outside the folder")
        try:
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{what} = {name!r} cannot be read: {error.strerror}") from error


def _checked(text: str, key: str) -> dict[str, Any]:
    """One line's object. Raises DataError naming the line and the key."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{key}: not valid JSON: {error}") from error
    if not isinstance(line, dict):
        raise DataError(f"{key}: not a JSON object")
    for name in ("caption", "image_0", "image_1"):
        if not isinstance(line.get(name), str) or not line[name].strip():
            raise DataError(f"{key}: {name} is {line.get(name)!r}; a text is wanted")
    preferred = line.get("preferred")
    if isinstance(preferred, bool) or preferred not in (0, 1, "tie"):
        raise DataError(f"{key}: preferred is {preferred!r}; 0, 1 or 'tie' is wanted")
    weight = line.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise DataError(f"{key}: weight is {weight!r}; a number above 0 is wanted")
    for name, value in line.items():
        if not isinstance(value, str | int | float | bool):
            raise DataError(f"{key}: {name} is {value!r}; a text, number, true or false is wanted")
    return line


def write_folder(folder: Path, rows: Iterable[PairRow]) -> None:
    """Write rows in this form, pictures under `images/`, the list last.

    Raises ValueError where a row's labels are neither a preference nor a tie.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        preferred = {(1.0, 0.0): 0, (0.0, 1.0): 1, (0.5, 0.5): "tie"}.get((row.label_0, row.label_1))
        if preferred is None:
            raise ValueError(f"{row.key}: labels {row.label_0} and {row.label_1} have no form in {INDEX}")
        names = []
        for side, data in enumerate((row.image_0, row.image_1)):
            ending = next((kind for mark, kind in _SIGNATURES.items() if data.startswith(mark)), ".img")
            names.append(f"images/{number:06d}_{side}{ending}")
            (folder / names[-1]).write_bytes(data)
        own: Mapping[str, Any] = {
            "caption": row.caption, "image_0": names[0], "image_1": names[1], "preferred": preferred,
            "weight": row.weight,
        }  # fmt: skip
        lines.append(json.dumps({**row.tags, **own}, ensure_ascii=False))
    (folder / INDEX).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
