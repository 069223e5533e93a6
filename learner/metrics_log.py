"""metrics.jsonl: one JSON object a step, on disk as soon as it is known, and cut back cleanly when a run resumes.

    {"step": 12, "time": 1700000000.0, "reward/mean": 21.3, "loss/total": "NaN"}

`time` is seconds since the epoch. Non-finite values are written the way protobuf's JSON does it ("NaN", "Infinity",
"-Infinity"), so that every line stays JSON for every reader; `float()` of such a string gives the value back.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

_RESERVED = ("step", "time")
_TAIL_LINES = 32  # lines kept in memory: values for any of these steps are merged without reading the file again


class MetricsLog:
    """Lines in the order of their steps, one each; values that come late are merged into the line of their step."""

    def __init__(self, path: Path) -> None:
        """Opens (or creates) `path`. Raises ValueError where a line that is not the last one is not valid."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)  # creates it
        self._tail: list[dict[str, Any]] = []
        self._tail_offsets: list[int] = []
        self.latest: dict[str, float] = {}
        self._replace(read_metrics(path))

    @property
    def last_step(self) -> int | None:
        """The highest step that has a line; None before the first."""
        return self._tail[-1]["step"] if self._tail else None

    def at(self, step: int) -> Mapping[str, float]:
        """The recent line of `step`; empty where there is none among the latest lines."""
        return next((line for line in reversed(self._tail) if line["step"] == step), {})

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Adds `values` to the line of `step`; on return they have been handed to the operating system."""
        for tag in values:
            if tag in _RESERVED:
                raise ValueError(f"metric {tag!r}: {_RESERVED} are the line's own keys")
        if self._tail_offsets and self._tail_offsets[0] > 0 and step < self._tail[0]["step"]:
            self._replace(_merged(read_metrics(self._path), step, values, time))
            return
        tail = _merged(self._tail, step, values, time)
        first = next(i for i, line in enumerate(tail) if line["step"] == step)
        offset = self._tail_offsets[first] if first < len(self._tail_offsets) else self._file.seek(0, os.SEEK_END)
        self._write_lines(tail, first, offset)
        if self._tail[-1]["step"] == step:
            self.latest.update(values)
        else:
            self.latest.update(_latest(self._tail))

    def truncate(self, last_step: int) -> None:
        """Drops every line with a step above `last_step`, atomically."""
        self._replace([line for line in read_metrics(self._path) if line["step"] <= last_step])

    def close(self) -> None:
        self._file.close()

    def _write_lines(self, tail: list[dict[str, Any]], first: int, offset: int) -> None:
        """Writes lines `first`.. of `tail` at byte `offset` in one call: a killed writer leaves the old or the new."""
        encoded = [_dump(line) for line in tail[first:]]
        self._file.seek(offset)
        self._file.write(b"".join(encoded))
        self._file.truncate()
        offsets = self._tail_offsets[:first] + _offsets(offset, encoded)
        self._tail, self._tail_offsets = tail[-_TAIL_LINES:], offsets[-_TAIL_LINES:]

    def _replace(self, lines: list[dict[str, Any]]) -> None:
        """Replaces the file (tmp, fsync, rename) and opens it."""
        tmp = self._path.with_name(self._path.name + ".tmp")
        encoded = [_dump(line) for line in lines]
        with tmp.open("wb") as file:
            file.write(b"".join(encoded))
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        tmp.replace(self._path)
        self._file = self._path.open("r+b", buffering=0)
        self._tail, self._tail_offsets = lines[-_TAIL_LINES:], _offsets(0, encoded)[-_TAIL_LINES:]
        self.latest = _latest(lines)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in file order, non-finite values as floats.

    A last line without its newline is the trace of a killed writer and is left out.
    Raises ValueError, naming file and line, for anything else that cannot be read.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
            lines.append({"step": int(line.pop("step")), **{key: float(value) for key, value in line.items()}})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not a metrics line ({error}): {text[:80]!r}") from error
    return lines


def _merged(lines: list[dict[str, Any]], step: int, values: Mapping[str, float], time: float) -> list[dict[str, Any]]:
    """`lines` (sorted by step) with `values` in the line of `step`."""
    by_step = {line["step"]: line for line in lines}
    by_step[step] = {**by_step.get(step, {}), "step": step, "time": time, **values}
    return [by_step[s] for s in sorted(by_step)]


def _offsets(start: int, encoded: list[bytes]) -> list[int]:
    """The byte at which each of the lines begins."""
    return list(accumulate((len(line) for line in encoded[:-1]), initial=start)) if encoded else []


def _latest(lines: list[dict[str, Any]]) -> dict[str, float]:
    latest: dict[str, float] = {}
    for line in lines:
        latest.update({tag: value for tag, value in line.items() if tag not in _RESERVED})
    return latest


def _dump(line: Mapping[str, Any]) -> bytes:
    return (json.dumps({key: _plain(value) for key, value in line.items()}, allow_nan=False) + "\n").encode()


def _plain(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
