"""What the papers say, beside what the cells say: each statement is a comparison of two cells.

Both cells are measured on the same captions and seeds, so they are compared picture by picture, a picture's difference
being the mean over the training seeds that both have. A statement is decided by the 95 % interval over pictures, and
only where every training seed points the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rollout.intervals import Interval, share_difference
from tests.benchmarks.ablations.results import Result
from tests.benchmarks.ablations.tables import tables

STEPWISE, PIXEL = "step-wise", "pixel-space"
MEASURES = {"judge/crisp": "crisp", "judge/caption": "captions right", "flaws/content": "content wrong"}


@dataclass(frozen=True)
class Statement:
    """`paper` says: row `more` of `table` has more of `metric` than row `less`."""

    paper: str
    table: str
    more: str
    less: str
    metric: str = "judge/crisp"

    def difference(self, results: Sequence[Result]) -> Difference | None:
        """more - less; None without a training seed that both have."""
        rows = tables()[self.table].rows
        found = {(result["cell"], result["seed"]): result["final"]["per_picture"] for result in results}
        more, less = rows[self.more].name, rows[self.less].name
        seeds = sorted(seed for name, seed in found if name == more and (less, seed) in found)
        if not seeds:
            return None
        sides = [[found[name, seed][self.metric] for seed in seeds] for name in (more, less)]
        by_seed = [[int(high) - int(low) for high, low in zip(*pair, strict=True)] for pair in zip(*sides, strict=True)]
        by_picture = [fmean(values) for values in zip(*by_seed, strict=True)]
        return Difference(share_difference(by_picture), {s: fmean(d) for s, d in zip(seeds, by_seed, strict=True)})


@dataclass(frozen=True)
class Difference:
    """Of two cells, in shares of pictures."""

    interval: Interval
    by_seed: dict[int, float]

    @property
    def verdict(self) -> str:
        """Of a statement that the difference is above 0."""
        signs = [share > 0 for share in self.by_seed.values()], [share < 0 for share in self.by_seed.values()]
        if self.interval.low > 0 and all(signs[0]):
            return "agrees"
        return "disagrees" if self.interval.high < 0 and all(signs[1]) else "not told apart"


LATENT, BOTH = "latent, no reference (SimPO)", "both, no reference (pixel-SimPO)"
STATEMENTS = (
    *(Statement(STEPWISE, "methods", "spo", other) for other in ("dpo", "d3po", "ddpo")),
    *(Statement(STEPWISE, "continuation", "random", other) for other in ("win", "lose")),
    Statement(STEPWISE, "preference", "step-aware", "step-aware, told t = 0 always"),
    Statement(STEPWISE, "preference", "step-aware", "plain, trained on clean pictures"),
    *(Statement(STEPWISE, "candidates", "4", other) for other in ("2", "8")),
    Statement(STEPWISE, "pair_rule", "best and worst", "random two"),
    *(Statement(STEPWISE, "range", "0 to 750", other) for other in ("0 to 1000", "0 to 500", "250 to 750")),
    Statement(STEPWISE, "block", "4", "1"),
    Statement(PIXEL, "methods", "pixel-sft", "sft"),
    Statement(PIXEL, "methods", "pixel-simpo", "simpo"),
    Statement(PIXEL, "pixel", LATENT, BOTH, "flaws/content"),
    Statement(PIXEL, "pixel", "latent, with reference (Diffusion-DPO)", "both, with reference", "flaws/content"),
    Statement(PIXEL, "pixel", BOTH, "pixel, no reference"),
    Statement(PIXEL, "pixel", BOTH, "both, no reference, at x0"),
    Statement(PIXEL, "pixel", BOTH, "both, with reference"),
)


def render_findings(results: Sequence[Result]) -> str:
    """The statements as a table."""
    lines = ["| paper | has more | than | here, points | seed by seed | verdict |", "|---|---|---|---:|---:|---|"]
    for statement in STATEMENTS:
        what = statement.table.replace("_", " ")
        row = [statement.paper, f"{MEASURES[statement.metric]}, {what}: {statement.more}", statement.less]
        found = statement.difference(results)
        if found is None:
            lines.append("| " + " | ".join([*row, "", "", "not run"]) + " |")
            continue
        interval = found.interval
        points = f"{100 * interval.mean:+.0f} ({100 * interval.low:+.0f} .. {100 * interval.high:+.0f})"
        seeds = ", ".join(f"{100 * share:+.0f}" for share in found.by_seed.values())
        lines.append("| " + " | ".join([*row, points, seeds, found.verdict]) + " |")
    return "\n".join(lines)
