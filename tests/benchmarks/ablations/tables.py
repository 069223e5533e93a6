"""What is varied: the methods of the learning curves, and the tables, whose rows are cells that differ in one thing.

The same settings are one cell in all tables. Before them every method is run at each of GRID's rates, by which RATES
were chosen (rates.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tests.benchmarks.ablations.cells import FOR_RATES, MARKS, Cell, Settings, merged

SEEDS = (0, 1, 2)
SPO_TABLES = ("rate", "continuation", "preference", "candidates", "pair_rule", "threshold", "range", "block")


GRID = (4e-4, 1e-3, 2.5e-3)
"""Peak learning rates of which a method's is chosen."""
RATE_SEED = 3
"""Of the runs that choose: none of SEEDS."""
RATES = {
    "spo": 2.5e-3,
    "mspo": 4e-4,
    "d3po": 4e-4,
    "ddpo": 1e-3,
    "dpo": 1e-3,
    "mapo": 1e-3,
    "simpo": 4e-4,
    "pixel-simpo": 2.5e-3,
    "sft": 2.5e-3,
    "pixel-sft": 2.5e-3,
}
"""By the rule (rates.py). A variant has the rate of the method that it is a variant of."""


def stepwise(**sampler: Any) -> Settings:
    """SPO with changes in its sampler; every pair counts and no ratio is clipped, as in the quickstart."""
    return {
        "rollout": {"sampler": {"type": "stepwise", "num_candidates": 4, "threshold": 0.0, **sampler}},
        "learner": {"objective": {"type": "spo", "clip": None}, "updates_per_batch": 2},
    }


def finished(objective: Settings, groups: int = 16) -> Settings:
    """A loss on finished pictures of a data set."""
    return {"learner": {"objective": objective, "groups_per_batch": groups}}


def trajectories(objective: Settings) -> Settings:
    """A loss on whole trajectories, four of each prompt."""
    learner = {"objective": objective, "groups_per_batch": 2, "updates_per_batch": 2}
    return {"rollout": {"sampler": {"type": "trajectory", "num_trajectories": 4}}, "learner": learner}


def at_rate(settings: Settings, lr: float) -> Settings:
    return merged(settings, {"learner": {"optimizer": {"lr": lr}}})


SIMPO: Settings = {"type": "simpo", "reduction": "mean", "beta": 500.0}
DPO: Settings = {"type": "dpo"}
SFT: Settings = {"type": "sft", "reduction": "mean"}
BOTH = {"pixel": {"weight": 2.0}}
PIXEL_ONLY = {"pixel": {"weight": 2.0, "latent_weight": 0.0}}

METHODS: dict[str, tuple[Settings, str | None]] = {
    "spo": (stepwise(), None),
    "mspo": (stepwise(block_length=4), None),
    "d3po": (trajectories({"type": "d3po", "clip": None}), None),
    "ddpo": (trajectories({"type": "ddpo"}), None),
    "dpo": (finished(DPO), "pairs"),
    "mapo": (finished({"type": "mapo"}), "pairs"),
    "simpo": (finished(SIMPO), "pairs"),
    "pixel-simpo": (finished({**SIMPO, **BOTH}), "pairs"),
    "sft": (finished(SFT, 32), "images"),
    "pixel-sft": (finished({**SFT, **BOTH}, 32), "images"),
}
"""Name -> settings without a rate, and data set."""
ONLINE = tuple(name for name, (_, data) in METHODS.items() if data is None)


def method(name: str, seed: int = 0) -> Cell:
    settings, data = METHODS[name]
    return Cell(name, at_rate(settings, RATES[name]), data, seed, marks=MARKS)


RATE_START = Cell("rate-start", {}, budget=0, seed=RATE_SEED, shown=FOR_RATES)
"""The untrained model on the pictures that rates are chosen by."""


def rate_cells() -> list[Cell]:
    """Every method at every rate, measured at its end on pictures of their own."""
    return [RATE_START] + [
        Cell(rate_name(name, lr), at_rate(settings, lr), data, RATE_SEED, shown=FOR_RATES)
        for name, (settings, data) in METHODS.items()
        for lr in GRID
    ]


def rate_name(name: str, lr: float) -> str:
    return f"rate-{name}-{lr:g}"


# The tables


@dataclass(frozen=True)
class Table:
    """Cells that differ in one thing. `rows`: what a row is called -> its cell with seed 0."""

    title: str
    rows: dict[str, Cell]


def _spo_tables() -> dict[str, Table]:
    spo = method("spo")

    def other(name: str, **sampler: Any) -> Cell:
        of = "mspo" if "block_length" in sampler else "spo"
        return Cell(f"spo-{name}", at_rate(stepwise(**sampler), RATES[of]))

    def scored(name: str, factory: str) -> Cell:
        scorer = {"type": "import", "target": f"tests.benchmarks.ablations.scorers:{factory}"}
        return Cell(f"spo-{name}", merged(spo.settings, {"rollout": {"scorer": scorer}}))

    def between(low: int, high: int) -> Cell:
        return other(f"t{low}-{high}", kappa=high, min_timestep=low)

    def at_peak(lr: float) -> Cell:
        return spo if lr == RATES["spo"] else Cell(f"spo-lr-{lr:g}", at_rate(stepwise(), lr))

    return {
        "rate": Table("SPO: the peak learning rate", {f"{lr:g}": at_peak(lr) for lr in GRID}),
        "continuation": Table(
            "SPO: which candidate the next step starts from",
            {"random": spo, "win": other("win", continuation="win"), "lose": other("lose", continuation="lose")},
        ),
        "preference": Table(
            "SPO: which preference model",
            {
                "step-aware": spo,
                "step-aware, told t = 0 always": scored("without-time", "without_time"),
                "plain, trained on clean pictures": scored("plain", "plain"),
            },
        ),
        "candidates": Table(
            "SPO: number of candidates k",
            {"2": other("k2", num_candidates=2), "4": spo, "8": other("k8", num_candidates=8)},
        ),
        "pair_rule": Table(
            "SPO: which two candidates make the pair",
            {"best and worst": spo, "random two": other("random-pair", pair_rule="random")},
        ),
        "threshold": Table(
            "SPO: by how much the winner must score higher for a pair to count",
            {"0": spo, "0.3": other("threshold-0.3", threshold=0.3), "0.6": other("threshold-0.6", threshold=0.6)},
        ),
        "range": Table(
            "SPO: target timesteps that draw candidates",
            {
                "0 to 1000": between(0, 1000),
                "0 to 750": spo,
                "0 to 500": between(0, 500),
                "0 to 250": between(0, 250),
                "250 to 750": between(250, 750),
                "250 to 500": between(250, 500),
                "500 to 750": between(500, 750),
            },
        ),
        "block": Table(
            "MSPO: transitions of a branch before it is scored",
            {"1": spo}
            | {str(n): method("mspo") if n == 4 else other(f"n{n}", block_length=n) for n in (2, 3, 4, 5, 6)},
        ),
    }


def _pixel_table() -> Table:
    def variant(name: str, objective: Settings, of: str) -> Cell:
        settings, data = METHODS[of]
        return Cell(name, at_rate(merged(settings, {"learner": {"objective": objective}}), RATES[of]), data)

    def at_x0(pixel: Settings) -> Settings:
        return {"pixel": {**pixel["pixel"], "decode": "x0"}}

    return Table(
        "Pixel paper: which space, with or without a reference, where errors are decoded",
        {
            "latent, no reference (SimPO)": method("simpo"),
            "pixel, no reference": variant("simpo-pixel-only", {**SIMPO, **PIXEL_ONLY}, "pixel-simpo"),
            "both, no reference (pixel-SimPO)": method("pixel-simpo"),
            "both, no reference, at x0": variant("simpo-both-x0", {**SIMPO, **at_x0(BOTH)}, "pixel-simpo"),
            "pixel, no reference, at x0": variant("simpo-pixel-only-x0", {**SIMPO, **at_x0(PIXEL_ONLY)}, "pixel-simpo"),
            "latent, with reference (Diffusion-DPO)": method("dpo"),
            "pixel, with reference": variant("dpo-pixel-only", {**DPO, **PIXEL_ONLY}, "dpo"),
            "both, with reference": variant("dpo-both", {**DPO, **BOTH}, "dpo"),
            "latent, supervised (SFT)": method("sft"),
            "pixel, supervised": variant("sft-pixel-only", {**SFT, **PIXEL_ONLY}, "pixel-sft"),
            "both, supervised (pixel-SFT)": method("pixel-sft"),
        },
    )


@cache
def tables() -> dict[str, Table]:
    """All tables by name."""
    curves = Table("Learning curves at equal compute", {name: method(name) for name in METHODS})
    return {"methods": curves, **_spo_tables(), "pixel": _pixel_table()}


LATER = (
    "spo-lr-0.0004", "spo-lr-0.001", "spo-n3", "spo-n5", "spo-n6", "spo-t0-250", "spo-t250-500", "spo-t500-750",
    "simpo-pixel-only-x0",
)  # fmt: skip
"""Cells of seed 0 that `--quick` leaves out."""


def quick_cells() -> list[Cell]:
    """One seed of every table's essential rows, in the order in which they are run."""
    return [cell for cell in _distinct(cell for table in tables().values() for cell in table.rows.values())
            if cell.name not in LATER]  # fmt: skip


def all_cells() -> list[Cell]:
    """The quick ones, the runs that choose rates, the other rows, then further seeds: of the methods first."""
    every = [cell for table in tables().values() for cell in table.rows.values()]
    seeds = [replace(cell, seed=seed) for seed in SEEDS[1:] for cell in every]
    methods = [cell for cell in seeds if cell.name in METHODS]
    return _distinct([*quick_cells(), *rate_cells(), *methods, *every, *seeds])


def _distinct(cells: Iterable[Cell]) -> list[Cell]:
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.slug, cell)
    return list(found.values())
