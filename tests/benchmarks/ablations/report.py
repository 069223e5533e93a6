"""docs/ablations.md: every figure from the results' files, and the discussion beside them (discussion.md)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.benchmarks.ablations.cells import BUDGET, FOR_RATES, MARKS, PICTURES_PER_CAPTION, START, Cell, weights
from tests.benchmarks.ablations.findings import render_findings
from tests.benchmarks.ablations.rates import in_brackets, render_rates
from tests.benchmarks.ablations.results import Result, Row, evaluations_to, row_of
from tests.benchmarks.ablations.tables import (
    GRID,
    RATE_SEED,
    RATE_START,
    SEEDS,
    SPO_TABLES,
    Table,
    all_cells,
    quick_cells,
    tables,
)

DISCUSSION = Path(__file__).with_name("discussion.md")
NOT_RUN = "not run"
Column = tuple[str, Callable[[Row], str]]


def share(metric: str) -> Column:
    """A share of pictures in per cent, and how it changed: with spread over seeds, or interval over pictures."""

    def text(row: Row) -> str:
        after, change = 100 * row.mean(metric), 100 * row.change(metric)
        spread, interval = row.spread(metric), row.interval(metric)
        if spread is not None:
            return f"{after:.0f} ± {100 * spread:.0f} ({change:+.0f})"
        if interval is not None:
            return f"{after:.0f} ({change:+.0f}; {100 * interval.low:+.0f} .. {100 * interval.high:+.0f})"
        return f"{after:.0f} ({change:+.0f})"

    return metric, text


def value(metric: str, digits: int = 3) -> Column:
    """A mean, with its spread over seeds."""

    def text(row: Row) -> str:
        spread = row.spread(metric)
        return f"{row.mean(metric):.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")

    return metric, text


def change(metric: str, digits: int = 3) -> Column:
    """How a mean changed, with the spread over seeds."""

    def text(row: Row) -> str:
        spread = row.spread(metric)
        return f"{row.change(metric):+.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")

    return metric, text


def spent(name: str) -> Column:
    return name, lambda row: f"{row.spent(name):,.0f}"


def trained_pairs(row: Row) -> str:
    return f"{sum(result['training']['pairs'] for result in row.results) / len(row.results):,.0f}"


COST: list[tuple[str, Column]] = [
    ("evaluations", spent("evaluations")),
    ("updates", spent("updates")),
    ("units trained", ("pairs", trained_pairs)),
    ("seeds", ("seeds", lambda row: str(len(row.seeds)))),
]
TASTE = [
    ("crisp, %", share("judge/crisp")),
    ("captions right, %", share("judge/caption")),
    ("both, %", share("judge/both")),
]
AI_LOOK = [
    ("high frequencies", change("appearance/high_frequency", 4)),
    ("depth of field", change("appearance/depth_of_field", 2)),
    ("saturation", change("appearance/saturation", 1)),
    ("brightness spread", change("appearance/brightness_spread", 4)),
    ("mirror symmetry", change("appearance/mirror_symmetry")),
    ("palette entropy", change("appearance/palette_entropy")),
    ("spread within prompts", change("diversity/within_spread", 4)),
    ("spread across prompts", change("diversity/across_spread", 4)),
]
DETAIL = [
    ("fine detail", value("detail/energy")),
    ("crisp, %", share("judge/crisp")),
    ("content wrong, %", share("flaws/content")),
    ("unexplained", value("flaws/unexplained", 4)),
    ("decodings", spent("decoded_trained")),
]


def render_page(results: Sequence[Result]) -> str:
    """The whole page."""
    every = tables()
    parts = [
        "# Do the objectives do what the papers say?",
        _introduction(results),
        "## How the rates were chosen",
        _rates_words(results),
        render_rates(results),
        "## Learning curves at equal compute",
        _picture("curves", "Measures against evaluations, a line each method", ["methods"], results),
        _table(every["methods"], [*TASTE, *COST], results),
        "The AI look and diversity at the end of the budget, as changes from the untrained model:",
        _table(every["methods"], AI_LOOK, results),
        "### A fifth of Diffusion-DPO's compute?",
        _claim(results),
        "## SPO's ablations",
        _picture("spo", "Change of crisp pictures and of right captions by variant", SPO_TABLES, results),
    ]
    for name in SPO_TABLES:
        parts += [f"### {every[name].title}", _table(every[name], [*TASTE, *COST], results)]
    parts += [
        "## The pixel paper's ablations",
        _pixel_words(results),
        _picture("spectrum", "Spectrum of the pictures over that of crisp renders", ["pixel"], results),
        _table(every["pixel"], [*DETAIL, *COST], results),
    ]
    parts += [
        "## The papers' statements",
        _prose(
            """Each line is a statement of a paper. Both cells were measured on the same captions and seeds. The
            difference is the mean over the training seeds that both have, with its 95 % interval over pictures; the two
            are not told apart where that holds 0, or where the training seeds do not all point one way."""
        ),
        render_findings(results),
        DISCUSSION.read_text(encoding="utf-8").strip(),
    ]
    parts += ["## What has run", _ran(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _picture(name: str, what: str, shown: Iterable[str], results: Sequence[Result]) -> str:
    """A link to the picture of these tables; nothing where no row of them has run."""
    rows = (row_of(cell, results) for table in shown for cell in tables()[table].rows.values())
    return f"![{what}](ablations/{name}.png)" if any(rows) else ""


def _table(table: Table, columns: Sequence[tuple[str, Column]], results: Sequence[Result]) -> str:
    head = ["", *(title for title, _ in columns)]
    lines = [head, ["---", *("---:" for _ in columns)]]
    for title, cell in table.rows.items():
        row = row_of(cell, results)
        found = [NOT_RUN, *[""] * (len(columns) - 1)] if row is None else [text(row) for _, (_, text) in columns]
        lines.append([title, *found])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _prose(text: str) -> str:
    """Paragraphs, each filled to the page's width."""
    filled = (textwrap.fill(" ".join(part.split()), 118, break_on_hyphens=False) for part in text.split("\n\n"))
    return "\n\n".join(filled)


def _introduction(results: Sequence[Result]) -> str:
    start = row_of(START, results)
    begins = "The untrained model has not been measured."
    if start is not None:
        crisp, soft, hatched, right = (
            f"{100 * start.before(f'judge/{name}'):.0f} %" for name in ("crisp", "soft", "hatched", "caption")
        )
        begins = (
            f"Untrained, {crisp} of the pictures are crisp, {soft} soft and {hatched} hatched, and {right} show what "
            "the caption asks for."
        )
    shown = START.shown
    pictures, early = shown.captions * PICTURES_PER_CAPTION, shown.on_the_way * PICTURES_PER_CAPTION
    marks = " and ".join(f"{100 * mark:.0f} %" for mark in MARKS)
    return _prose(
        f"""Written by `make ablations` (`python -m tests.benchmarks.ablations`) from the results in `docs/ablations/`:
        every figure and table comes from those files. `make ablations QUICK=1` is one seed of the essential cells; a
        finished cell is not run again unless its settings change.

        Every cell trains the miniature (`rollout/miniature`) with the real sampler, queue, loop and engine in one
        process, ten denoising steps, and spends the same compute, {BUDGET:,} evaluations: one is one picture through
        the denoising network (guidance costs two) or through the decoder; a row with gradients counts twice. It has as
        many batches as that pays for, and its rate rises over four updates and falls to 0 along a cosine. At its end it
        is measured on {pictures} pictures of held-out captions (the same captions and seeds for all cells), by the
        judge and by statistics that nothing is trained on, never by the reward in use. The learning curves are of the
        first {early} of those pictures, which are also drawn at {marks} of the budget. {begins}

        `spo`, `mspo`, `ddpo` and `d3po` roll out and learn from the miniature's preference model; SPO, MSPO and D3PO as
        in the quickstart, every pair counting and no ratio clipped. `dpo`, `mapo`, `simpo` and `pixel-simpo` learn from
        rendered pairs (crisp against soft or hatched, and right captions against wrong ones), labelled by how they were
        rendered; `sft` and `pixel-sft` from crisp renders alone. With several seeds a share is given as mean ± standard
        deviation over seeds, with the change of the mean in brackets; with one seed the change has its 95 % interval
        over pictures, paired with the untrained model's. "Both" are the pictures that are crisp and show what the
        caption asks for. {_versions(results)}"""
    )


def _rates_words(results: Sequence[Result]) -> str:
    pictures = FOR_RATES.captions * PICTURES_PER_CAPTION
    (untrained,) = [r for r in results if r["cell"] == RATE_START.name] or (None,)
    begins = "" if untrained is None else f" Untrained: {in_brackets(untrained)}."
    return _prose(
        f"""A method is run at each of {len(GRID)} peak rates with seed {RATE_SEED}, which no other cell has, and is
        measured on {pictures} pictures of other held-out captions and seeds. What counts is the share of
        pictures that are both crisp and as captioned: its rate is the lowest one whose share lies within one standard
        error of the largest. A variant has its method's rate: SPO's ablations SPO's, blocks of several transitions
        MSPO's, pixel variants that of the loss they vary. In per cent: both (crisp, captions right).{begins}"""
    )


def _versions(results: Sequence[Result]) -> str:
    """Which weights the results were made with, and when."""
    if not results:
        return "Nothing has run yet."
    found: dict[str, set[str]] = {}
    for result in results:
        for name, sha in result["definition"]["weights"].items():
            found.setdefault(name.replace("_", " "), set()).add(sha)
    made = "; ".join(f"{name} {', '.join(sorted(shas))}" for name, shas in sorted(found.items()))
    dates = sorted({result["made"]["date"] for result in results})
    now = weights(scored=False)["network"]
    other = "" if found["network"] == {now} else f" The miniature has others since (network {now})."
    return f"Weights: {made}. Run on {' and '.join(dates)}.{other}"


def _claim(results: Sequence[Result]) -> str:
    spo, dpo = (row_of(tables()["methods"].rows[name], results) for name in ("spo", "dpo"))
    if spo is None or dpo is None:
        return "SPO or Diffusion-DPO has not run yet."
    curve = spo.curve("judge/crisp")
    best = max(point.value for point in curve) - curve[0].value
    lines = [
        "| gain in crisp pictures | SPO reaches it after | Diffusion-DPO after | SPO's over Diffusion-DPO's |",
        "|---|---:|---:|---:|",
    ]
    for part in (0.25, 0.5, 1.0) if best > 0 else ():
        counts = [evaluations_to(row, "judge/crisp", part * best) for row in (spo, dpo)]
        reached = ["not within its budget" if count is None else f"{count:,.0f}" for count in counts]
        ratio = f"{counts[0] / counts[1]:.2f}" if counts[0] and counts[1] else "n/a"
        if counts[0] and not counts[1]:
            ratio = f"below {counts[0] / dpo.spent():.2f}"
        lines.append(f"| {100 * part * best:.0f} points | {reached[0]} | {reached[1]} | {ratio} |")
    words = _prose(
        """The step-wise paper says that SPO needs about a fifth of Diffusion-DPO's compute for the same quality. Here,
        in evaluations until the curve of crisp pictures first reaches a gain (shares of SPO's own largest), with points
        joined linearly:"""
    )
    return words + "\n\n" + ("\n".join(lines) if best > 0 else "SPO gained nothing.")


def _pixel_words(results: Sequence[Result]) -> str:
    start = row_of(START, results)
    if start is None:
        return "The untrained model has not been measured."
    return _prose(
        f"""Fine detail is the energy of the luma above 0.25 cycles per pixel, over that of crisp renders of the same
        captions: a crisp render has 1, what the autoencoder makes of it {start.before("detail/rebuilt"):.3f}, and the
        untrained model's pictures {start.before("detail/energy"):.3f}. Content is wrong where the judge reads another
        shape, colour, size, position or background ({100 * start.before("flaws/content"):.0f} % untrained). Unexplained
        is the share of a picture's energy about its background that no object of the world accounts for
        ({start.before("flaws/unexplained"):.4f} untrained)."""
    )


def _ran(results: Sequence[Result]) -> str:
    have = {(result["cell"], result["seed"]) for result in results}
    cells = [START, *all_cells()]
    quick = {cell.slug for cell in [START, *quick_cells()]}
    done = [cell for cell in cells if (cell.name, cell.seed) in have]
    left = [cell for cell in cells if (cell.name, cell.seed) not in have]
    in_quick = sum(cell.slug in quick for cell in done)
    minutes = [result["made"].get("cpu_sec", 0.0) / 60 for result in results]
    took = f" They took {sum(minutes):.0f} minutes of one core, {max(minutes):.1f} at most." if minutes else ""
    return _prose(
        f"{len(done)} of {len(cells)} cells, {in_quick} of the {len(quick)} of `QUICK=1`.{took}\n\n"
        f"Run: {_by_name(done)}.\n\nNot run: {_by_name(left)}."
    )


def _by_name(cells: Iterable[Cell]) -> str:
    seeds: dict[str, list[int]] = {}
    for cell in cells:
        seeds.setdefault(cell.name, []).append(cell.seed)
    whole = (list(SEEDS), [RATE_SEED])
    named = [name if found in whole else f"{name} (seed {', '.join(map(str, found))})"
             for name, found in seeds.items()]  # fmt: skip
    return re.sub(r"\(seed (\d+, )", r"(seeds \1", ", ".join(named)) or "none"
