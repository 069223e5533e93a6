"""The page's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from tests.benchmarks.ablations.cells import START
from tests.benchmarks.ablations.results import Result, Row, row_of
from tests.benchmarks.ablations.tables import ONLINE, SPO_TABLES, tables

PANELS = {
    "judge/crisp": "crisp, share of pictures",
    "judge/caption": "captions right, share of pictures",
    "diversity/within_spread": "spread within prompts",
    "appearance/high_frequency": "high frequencies, share of energy",
    "appearance/saturation": "saturation",
    "appearance/palette_entropy": "palette entropy, bits",
}
PREFIXES = {"rate": "rate ", "candidates": "k = ", "threshold": "threshold ", "range": "t' ", "block": "block "}
"""Of SPO's tables whose rows are numbers."""


def draw_all(results: Sequence[Result], folder: Path) -> None:
    """Write curves.png, spo.png and spectrum.png into `folder`; one that has nothing to show is left as it is."""
    if row_of(START, results) is None:
        return
    for name, draw in (("curves", draw_curves), ("spo", draw_spo), ("spectrum", draw_spectrum)):
        figure = draw(results)
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=100, metadata={"Software": None})
            plt.close(figure)


def draw_curves(results: Sequence[Result]) -> Any:
    """A panel a measure, a line a method: online ones solid, those on a data set dashed; bars are ± one deviation."""
    rows = {name: row_of(cell, results) for name, cell in tables()["methods"].rows.items()}
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for axis, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
        for number, (name, row) in enumerate(rows.items()):
            if row is None:
                continue
            points = row.curve(metric)
            bars = [point.spread or 0.0 for point in points]
            style = "-" if name in ONLINE else "--"
            look = {"color": f"C{number}", "marker": "o", "markersize": 3, "capsize": 2}
            x, y = [point.evaluations for point in points], [point.value for point in points]
            axis.errorbar(x, y, yerr=bars, fmt=style, label=name, **look)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("evaluations (network and decoder)", fontsize=8)
        axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if not handles:
        plt.close(figure)
        return None
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure


def draw_spo(results: Sequence[Result]) -> Any:
    """A dot a variant: change in points of crisp pictures and of right captions."""
    entries: list[tuple[str, Row]] = []
    for name in SPO_TABLES:
        table = tables()[name]
        prefix = PREFIXES.get(name, "")
        entries += [(f"{prefix}{title}", row) for title, cell in table.rows.items() if (row := row_of(cell, results))]
    if not entries:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.6 + 0.28 * len(entries)), sharey=True, layout="constrained")
    places = range(len(entries), 0, -1)
    for axis, (metric, title) in zip(axes, list(PANELS.items())[:2], strict=True):
        for place, (_, row) in zip(places, entries, strict=True):
            change, interval, spread = row.change(metric), row.interval(metric), row.spread(metric)
            low, high = (change - (spread or 0), change + (spread or 0)) if interval is None else interval_of(interval)
            axis.plot([100 * low, 100 * high], [place, place], color="C0" if spread is None else "C1")
            axis.plot(100 * change, place, "o", color="C0" if spread is None else "C1")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{title}: change in points", fontsize=10)
        axis.set_yticks(list(places), [title for title, _ in entries], fontsize=8)
        axis.grid(alpha=0.3)
    figure.supxlabel("blue: one seed, 95 % interval over pictures; orange: ± one deviation over seeds", fontsize=8)
    return figure


def interval_of(interval: Any) -> tuple[float, float]:
    return interval.low, interval.high


def draw_spectrum(results: Sequence[Result]) -> Any:
    """Radial power of the pictures over that of crisp renders: 1 is as much detail as a render has."""
    start = row_of(START, results)
    rows = {title: row for title, cell in tables()["pixel"].rows.items() if (row := row_of(cell, results))}
    if start is None or not rows:
        return None
    wanted = start.start["final"]["crisp_spectrum"]
    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    frequencies = [(index + 0.5) / (2 * len(wanted)) for index in range(len(wanted))]

    def line(result: Result, **style: Any) -> None:
        found = result["final"]["spectrum"]
        axis.plot(frequencies[1:], [f / w for f, w in zip(found[1:], wanted[1:], strict=True)], **style)

    line(start.start, color="black", label="untrained", linewidth=2)
    for number, (title, row) in enumerate(rows.items()):
        style = "--" if "with reference" in title else ":" if "supervised" in title else "-"  # more lines than colours
        line(row.results[0], color=f"C{number}", label=title, linestyle=style)
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.axvline(0.25, color="grey", linewidth=0.8, linestyle=":")
    axis.set_yscale("log")
    axis.set_xlabel("cycles per pixel (fine detail is what lies right of the dotted line)")
    axis.set_ylabel("power over that of crisp renders")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure
