"""What the papers say, beside what the cells say: each statement is a comparison of two cells, decided by its interval.

Both cells are measured on the same captions and seeds, so they are compared picture by picture, over the training seeds
that both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.intervals import Interval, paired_difference
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

    def difference(self, results: Sequence[Result]) -> tuple[Interval, list[int]] | None:
        """more - less with its 95 % interval over pictures, and the training seeds; None without a common one."""
        rows = tables()[self.table].rows
        found = {(result["cell"], result["seed"]): result["points"][-1]["per_picture"] for result in results}
        more, less = rows[self.more].name, rows[self.less].name
        seeds = sorted(seed for name, seed in found if name == more and (less, seed) in found)
        if not seeds:
            return None
        sides = [[float(bit) for seed in seeds for bit in found[name, seed][self.metric]] for name in (less, more)]
        return paired_difference(*sides), seeds


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
    lines = ["| paper | has more | than | here, points | verdict | seeds |", "|---|---|---|---:|---|---:|"]
    for statement in STATEMENTS:
        what = statement.table.replace("_", " ")
        row = [statement.paper, f"{MEASURES[statement.metric]}, {what}: {statement.more}", statement.less]
        found = statement.difference(results)
        if found is None:
            lines.append("| " + " | ".join([*row, "", "not run", "0"]) + " |")
            continue
        interval, seeds = found
        points = f"{100 * interval.mean:+.0f} ({100 * interval.low:+.0f} .. {100 * interval.high:+.0f})"
        lines.append("| " + " | ".join([*row, points, verdict(interval), str(len(seeds))]) + " |")
    return "\n".join(lines)


def verdict(interval: Interval) -> str:
    """Of a statement that the difference is above 0."""
    if interval.low > 0:
        return "agrees"
    return "disagrees" if interval.high < 0 else "not told apart"
