"""How each method's learning rate was chosen: from one grid, by one rule, on pictures for that alone.

The rule: of the rates whose share of pictures that are crisp and show what the caption asks for lies within one
standard error of the best one's, the lowest. The best alone would be decided by a picture or two, towards rates that
overshoot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.benchmarks.ablations.results import Result
from tests.benchmarks.ablations.tables import GRID, METHODS, RATES, rate_name

WEIGHED = "judge/both"


def shares(method: str, results: Sequence[Result]) -> dict[float, Result]:
    """Rate -> its result, where there is one."""
    found = {result["cell"]: result for result in results}
    return {lr: found[rate_name(method, lr)] for lr in GRID if rate_name(method, lr) in found}


def chosen(method: str, results: Sequence[Result]) -> float | None:
    """The rate that the rule gives; None while one of the grid's has not run."""
    run = shares(method, results)
    if len(run) < len(GRID):
        return None
    share = {lr: float(result["final"]["metrics"][WEIGHED]) for lr, result in run.items()}
    best = max(share, key=lambda lr: share[lr])
    pictures = len(run[best]["final"]["per_picture"][WEIGHED])
    error = math.sqrt(share[best] * (1 - share[best]) / pictures)
    return min(lr for lr in GRID if share[lr] >= share[best] - error)


def render_rates(results: Sequence[Result]) -> str:
    """A row a method: what each rate came to; in bold the chosen one's."""
    head = ["", *(f"{lr:g}" for lr in GRID), "in use"]
    lines = [head, ["---", *("---:" for _ in GRID), "---:"]]
    for method in METHODS:
        run, best = shares(method, results), chosen(method, results)
        lines.append([method, *(_cell(run.get(lr), bold=lr == best) for lr in GRID), f"{RATES[method]:g}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(result: Result | None, *, bold: bool) -> str:
    return "not run" if result is None else in_brackets(result, "**" if bold else "")


def in_brackets(result: Result, around: str = "") -> str:
    """The share that the rule weighs; in brackets crisp and right captions apart. Per cent."""
    both, crisp, right = (100 * result["final"]["metrics"][name] for name in (WEIGHED, "judge/crisp", "judge/caption"))
    return f"{around}{both:.0f}{around} ({crisp:.0f}, {right:.0f})"
