"""The runner: keys, resumption, one real cell, and a page that says what the results say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.intervals import Interval
from tests.benchmarks.ablations import __main__ as command
from tests.benchmarks.ablations import cells
from tests.benchmarks.ablations.cells import MARKS, START, Cell, Shown
from tests.benchmarks.ablations.findings import Difference, Statement
from tests.benchmarks.ablations.plots import draw_all
from tests.benchmarks.ablations.rates import chosen
from tests.benchmarks.ablations.report import render_page
from tests.benchmarks.ablations.results import evaluations_to, load_results, row_of
from tests.benchmarks.ablations.tables import (
    GRID,
    METHODS,
    RATES,
    all_cells,
    at_rate,
    finished,
    method,
    quick_cells,
    rate_cells,
    stepwise,
    tables,
)

SHARES = {"judge/crisp": "0011", "judge/caption": "0111", "judge/both": "0011", "flaws/content": "0000"}


def test_every_cell_is_a_valid_run_and_only_what_matters_is_in_its_key():
    keys = {cell.slug: cell.key() for cell in all_cells()}
    assert len(set(keys.values())) == len(keys) > len(quick_cells())
    for cell in all_cells():
        cell.config("somewhere", "rows.parquet", None)
    spo, dpo = method("spo"), method("dpo")
    assert "preference_model" in spo.definition()["weights"] and "preference_model" not in dpo.definition()["weights"]
    assert tables()["candidates"].rows["4"].key() == spo.key() == Cell("renamed", spo.settings, marks=MARKS).key()
    assert replace(spo, budget=1).key() != spo.key() != method("spo", seed=1).key()


def test_a_section_of_another_type_replaces_the_one_below():
    below = {"sampler": {"type": "stepwise", "kappa": 750}, "lr": 1}
    assert cells.merged(below, {"sampler": {"type": "trajectory"}}) == {"sampler": {"type": "trajectory"}, "lr": 1}
    assert cells.merged(below, {"sampler": {"kappa": 500}})["sampler"] == {"type": "stepwise", "kappa": 500}


def made_up(cell: Cell, folder: Path, crisp: str = "0011", **metrics: float) -> None:
    """A result file with two points, whose crisp share is that of `crisp`."""
    shares = {**SHARES, "judge/crisp": crisp}
    every = {name: float(sum(map(int, bits)) / len(bits)) for name, bits in shares.items()}
    names = [*pictures_metrics(), *metrics]
    point = {"metrics": {**dict.fromkeys(names, 0.25), **every, **metrics}, "per_picture": shares, "updates": 3}
    point |= {"spectrum": [2.0] * 32, "crisp_spectrum": [1.0] * 32}
    counts = {"network": 1, "network_trained": 2, "decoded": 3, "decoded_trained": 4}
    curve = [{**point, **counts, "evaluations": spent} for spent in (100, 200)]
    result = {
        "cell": cell.name, "seed": cell.seed, "key": cell.key(), "definition": cell.definition(),
        "made": {"date": "2026-11-26"}, "training": {"pairs": 7},
        "curve": curve[:1] if cell.budget == 0 else curve, "final": curve[-1],
    }  # fmt: skip
    (folder / f"{cell.slug}.json").write_text(json.dumps(result))


def pictures_metrics() -> list[str]:
    """The names that the page reads."""
    look = ["high_frequency", "depth_of_field", "saturation", "brightness_spread", "mirror_symmetry", "palette_entropy"]
    judged = ["judge/soft", "judge/hatched", "flaws/unexplained", "detail/energy", "detail/rebuilt", *SHARES]
    return [*judged, *(f"appearance/{n}" for n in look), "diversity/within_spread", "diversity/across_spread"]


def test_a_finished_cell_is_not_run_again_unless_its_definition_changed(tmp_path):
    wanted = [START, method("spo"), method("dpo")]
    assert command.missing(wanted, tmp_path) == wanted
    made_up(method("spo"), tmp_path)
    assert command.missing(wanted, tmp_path) == [START, method("dpo")]
    changed = replace(method("spo"), settings=stepwise(threshold=0.4))
    assert command.missing([changed], tmp_path) == [changed]
    (tmp_path / "half.json").write_text('{"cell": "spo"')
    with pytest.raises(ValueError, match=r"half\.json: not a cell's result"):
        command.missing(wanted, tmp_path)


def test_the_page_says_what_the_results_say(tmp_path):
    empty = render_page([])
    assert "| spo | not run |  |" in empty and "Nothing has run yet" in " ".join(empty.split())
    made_up(START, tmp_path, crisp="0001")
    made_up(method("spo"), tmp_path, crisp="0111")
    made_up(method("dpo", 0), tmp_path, crisp="0011")
    made_up(method("dpo", 1), tmp_path, crisp="1111")
    found = load_results(tmp_path)
    spo, dpo = (row_of(method(name), found) for name in ("spo", "dpo"))
    assert (
        evaluations_to(spo, "judge/crisp", 0.25) == pytest.approx(50)
        and evaluations_to(spo, "judge/crisp", 0.6) is None
    )
    assert dpo.mean("judge/crisp") == 0.75 and dpo.spread("judge/crisp") == pytest.approx(0.5**0.5 / 2)
    page = render_page(found)
    assert "| spo | 75 (+50; -17 .. +83) | 75 (+0; -33 .. +33) | 50 (+0; -33 .. +33) | 200 | 3 | 7 | 1 |" in page
    assert "| dpo | 75 ± 35 (+50) |" in page, "two seeds: their spread"
    assert (
        f"4 of {len(all_cells()) + 1} cells, 3 of the {len(quick_cells()) + 1}" in page and "dpo (seeds 0, 1)" in page
    )


def test_a_statement_is_decided_by_its_interval_over_the_seeds_that_both_have(tmp_path):
    claim = Statement("a paper", "methods", "spo", "dpo")
    assert claim.difference([]) is None
    for seed, more, less in ((0, "1111", "0000"), (1, "1111", "0001"), (2, "0000", None)):
        made_up(method("spo", seed), tmp_path, crisp=more)
        if less is not None:
            made_up(method("dpo", seed), tmp_path, crisp=less)
    found = claim.difference(load_results(tmp_path))
    assert found.by_seed == {0: 1.0, 1: 0.75} and found.interval.mean == 7 / 8 and found.interval.n == 4
    assert found.verdict == "agrees"
    back = replace(claim, more="dpo", less="spo").difference(load_results(tmp_path))
    assert back.interval.mean == -7 / 8 and back.verdict == "disagrees"
    page = render_page(load_results(tmp_path))
    assert "| step-wise | crisp, methods: spo | dpo | +88 (" in page and ") | +100, +75 | agrees |" in page
    assert "| d3po |  |  | not run |" in page


def test_a_statement_is_open_where_the_interval_holds_0_or_seeds_do_not_agree():
    for interval, by_seed, verdict in (
        (Interval(0.1, -0.1, 0.3, 8), {0: 0.1}, "not told apart"),
        (Interval(0.2, 0.1, 0.3, 8), {0: 0.5, 1: -0.1}, "not told apart"),
        (Interval(-0.2, -0.3, -0.1, 8), {0: -0.5, 1: 0.0}, "not told apart"),
        (Interval(0.2, 0.1, 0.3, 8), {0: 0.3, 1: 0.1}, "agrees"),
    ):
        assert Difference(interval, by_seed).verdict == verdict


def test_the_rule_takes_the_lowest_rate_within_a_standard_error_of_the_best(tmp_path):
    at = {cell.name: cell for cell in rate_cells()}

    def share(lr, both):
        made_up(at[f"rate-spo-{lr:g}"], tmp_path, **{"judge/both": both})

    share(GRID[0], 0.3)
    share(GRID[1], 0.65)
    assert chosen("spo", load_results(tmp_path)) is None
    share(GRID[2], 0.8)  # of 4 pictures: 0.2 more or less
    assert chosen("spo", load_results(tmp_path)) == GRID[1]
    page = render_page(load_results(tmp_path))
    assert "| spo | 30 (50, 75) | **65** (50, 75) | 80 (50, 75) | " in page and "| mspo | not run |" in page
    share(GRID[1], 0.59)
    assert chosen("spo", load_results(tmp_path)) == GRID[2]


def test_the_rates_in_use_are_those_that_the_rule_gives():
    found = load_results(command.RESULTS)
    given = {name: chosen(name, found) for name in METHODS}
    assert {name: lr for name, lr in given.items() if lr is not None and lr != RATES[name]} == {}


def test_pictures_are_drawn_for_what_has_run(tmp_path):
    draw_all([], tmp_path)
    made_up(START, tmp_path)
    draw_all(load_results(tmp_path), tmp_path)
    assert not list(tmp_path.glob("*.png"))
    made_up(method("dpo"), tmp_path)
    draw_all(load_results(tmp_path), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"curves.png", "spectrum.png"}, "no SPO yet"
    page = render_page(load_results(tmp_path))
    assert "ablations/curves.png" in page and "ablations/spo.png" not in page


def test_the_committed_page_is_that_of_the_committed_results():
    assert command.PAGE.read_text(encoding="utf-8") == render_page(load_results(command.RESULTS)), (
        "run python -m tests.benchmarks.ablations --report"
    )


@pytest.mark.timeout(600)
def test_a_cell_trains_and_is_measured(tmp_path):
    """The real loop in a process of its own, on a small data set and two captions; and one that cannot run."""
    settings = at_rate(finished({"type": "sft", "reduction": "mean"}, groups=4), 1e-3)
    quick = cells.merged(settings, {"learner": {"optimizer": {"warmup_steps": 0}}})
    cell = Cell("sft", quick, "images", budget=32, marks=(0.3, 0.6), shown=Shown(captions=2, on_the_way=1), rows=8)
    broken = replace(cell, settings=cells.merged(settings, {"learner": {"groups_per_batch": 0}}))
    failed = command.run_all([cell, replace(broken, name="broken")], tmp_path, tmp_path / "work", jobs=1)
    assert len(failed) == 1 and failed[0].startswith("broken-seed0: ValidationError: ")
    (result,) = load_results(tmp_path)
    assert [point["network_trained"] for point in result["curve"]] == [8, 12, 16], "8 evaluations a batch: four batches"
    final = result["final"]
    assert final["evaluations"] == 32 and final["updates"] == 4 and result["training"]["pairs"] == 16
    first = result["curve"][0]
    assert set(pictures_metrics()) - {"detail/rebuilt"} <= set(final["metrics"])
    assert first["spectrum"] != result["curve"][-1]["spectrum"], "the adapter has moved on"
    assert [len(at["per_picture"]["judge/crisp"]) for at in (first, final)] == [2, 4], "two pictures a caption"
    assert command.missing([cell, broken], tmp_path) == [broken]
