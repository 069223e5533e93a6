"""What an evaluation found, as results.json and as the table on the console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rollout.evaluation.lora import BASE, Candidate
from rollout.evaluation.scoring import Scores
from rollout.evaluation.statistics import bootstrap_difference, bootstrap_mean, win_rate
from rollout.intervals import Interval

FORMAT = 1
_UNKNOWN = "unknown"
_HEAD = ("model", "mean", "95 % interval", "change from base", "95 % interval", "win rate", "95 % interval")
_SAMPLERS = {"ddim": "DDIM", "flow_sde": "stochastic flow steps"}


def results(
    settings: Mapping[str, Any],
    prompts: Sequence[str],
    candidates: Sequence[Candidate],
    scores: Mapping[str, Scores],
) -> dict[str, Any]:
    """The contents of results.json.

    `metrics[name][candidate]`: `mean` {mean, low, high, n}, and for each LoRA `difference` from the base (paired); of
    scorers, where higher is better, also `win_rate`. `kind` says `score`, `measure`, or `set` for a statistic of all
    pictures together, which has no interval. The sampling settings are in every metric's entry, so that a figure copied
    out of the file keeps them. Infinite and absent bounds are null.
    """
    return {
        "format": FORMAT,
        "settings": dict(settings),
        "prompts": list(prompts),
        "seeds": [settings["seed"] + n for n in range(len(prompts))],
        "candidates": {c.name: _described(c) for c in candidates},
        "metrics": {
            name: {
                "kind": _kind(name, scores[BASE]),
                "settings": dict(settings),
                "candidates": {c.name: _entry(name, c.name, scores, prompts) for c in candidates},
            }
            for name in (*scores[BASE].all(), *scores[BASE].sets)
        },
        "per_picture": {c.name: scores[c.name].all() for c in candidates},
    }


def _described(candidate: Candidate) -> dict[str, Any]:
    file = None if candidate.file is None else str(candidate.file)
    return {"lora": file, "sha256": candidate.sha256, "warnings": list(candidate.warnings)}


def _kind(name: str, scores: Scores) -> str:
    if name in scores.rewards:
        return "score"
    return "set" if name in scores.sets else "measure"


def _entry(name: str, candidate: str, scores: Mapping[str, Scores], prompts: Sequence[str]) -> dict[str, Any]:
    if name in scores[BASE].sets:
        value, start = scores[candidate].sets[name], scores[BASE].sets[name]
        of_set: dict[str, Any] = {"mean": _without_interval(value, len(prompts))}
        return of_set if candidate == BASE else {**of_set, "difference": _without_interval(value - start, len(prompts))}
    values, base = scores[candidate].all()[name], scores[BASE].all()[name]
    entry: dict[str, Any] = {"mean": _plain(bootstrap_mean(values, prompts))}
    if candidate != BASE:
        entry["difference"] = _plain(bootstrap_difference(base, values, prompts))
        if name in scores[BASE].rewards:
            rate = win_rate(base, values, prompts)
            entry["win_rate"] = {**asdict(rate), "interval": _plain(rate.interval)}
    return entry


def _plain(interval: Interval) -> dict[str, Any]:
    return {key: value if math.isfinite(value) else None for key, value in asdict(interval).items()}


def _without_interval(value: float, count: int) -> dict[str, Any]:
    return {"mean": value, "low": None, "high": None, "n": count}


def table(found: Mapping[str, Any]) -> str:
    """Every metric under its name, a line a model; without the columns that nothing stands in."""
    if not found["metrics"]:
        return "No scorers and no measures: pictures only."
    rows: list[tuple[str, ...]] = [_HEAD]
    metrics: dict[int, str] = {}  # row -> the metric whose figures begin there
    for name, metric in found["metrics"].items():
        metrics[len(rows)] = name
        for candidate, entry in metric["candidates"].items():
            cells = (*_cells(entry["mean"]), *_change(entry), *_wins(entry))
            of_set = metric["kind"] == "set"
            rows.append((f"  {candidate}", *("" if of_set and cell == _UNKNOWN else cell for cell in cells)))
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*columns, strict=True)]
    for row in sorted(metrics, reverse=True):
        lines.insert(row, metrics[row])
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def notes(found: Mapping[str, Any]) -> list[str]:
    """Warnings, and how the pictures were sampled, as sentences."""
    settings = found["settings"]
    lines = [
        f"warning: {name} {text}" for name, candidate in found["candidates"].items() for text in candidate["warnings"]
    ]
    pictures, prompts = len(found["prompts"]), len(set(found["prompts"]))
    many = f"{pictures} pictures" + (f" of {prompts} prompts" if prompts < pictures else "")
    random = f"eta {settings['eta']:g}" if "eta" in settings else f"noise level {settings['noise_level']:g}"
    lines.append(
        f"{many} a model, {_SAMPLERS[settings['sampler']]}, {settings['steps']} steps, "
        f"guidance {settings['guidance']:g}, {random}, seeds from {settings['seed']}, base {settings['base']} "
        f"({settings['base_fingerprint']})"
    )
    return lines


def _cells(interval: Mapping[str, Any], sign: str = "") -> tuple[str, str]:
    low, high = interval["low"], interval["high"]
    bounds = _UNKNOWN if low is None else f"{low:{sign}.4g} .. {high:{sign}.4g}"
    return f"{interval['mean']:{sign}.4g}", bounds


def _change(entry: Mapping[str, Any]) -> tuple[str, str]:
    return _cells(entry["difference"], "+") if "difference" in entry else ("", "")


def _wins(entry: Mapping[str, Any]) -> tuple[str, str]:
    if "win_rate" not in entry:
        return "", ""
    interval = entry["win_rate"]["interval"]
    return f"{interval['mean']:.1%}", f"{interval['low']:.1%} .. {interval['high']:.1%}"
