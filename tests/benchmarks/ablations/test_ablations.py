"""The runner: keys, resumption, one real cell, and a page that says what the results say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.intervals import Interval
from tests.benchmarks.ablations import __main__ as command
from tests.benchmarks.ablations import cells
from tests.benchmarks.ablations.cells import START, Cell
from tests.benchmarks.ablations.findings import Statement, verdict
from tests.benchmarks.ablations.plots import draw_all
from tests.benchmarks.ablations.report import render_page
from tests.benchmarks.ablations.results import evaluations_to, load_results, row_of
from tests.benchmarks.ablations.tables import all_cells, finished, method, quick_cells, stepwise, tables

SHARES = {"judge/crisp": "0011", "judge/caption": "0111", "flaws/content": "0000"}


def test_every_cell_is_a_valid_run_and_only_what_matters_is_in_its_key():
    keys = {cell.slug: cell.key() for cell in all_cells()}
    assert len(set(keys.values())) == len(keys) > len(quick_cells())
    for cell in all_cells():
        cell.config("somewhere", "rows.parquet", None)
    spo = method("spo")
    assert tables()["candidates"].rows["4"].key() == spo.key() == Cell("renamed", spo.settings).key()
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
    points = [{**point, **counts, "evaluations": spent} for spent in (100, 200)]
    result = {
        "cell": cell.name, "seed": cell.seed, "key": cell.key(), "definition": cell.definition(),
        "made": {"date": "2026-11-26"}, "training": {"pairs": 7}, "points": points[:1] if cell is START else points,
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
    assert "| spo | not run |  |" in render_page([]) and "Nothing has run yet" in render_page([])
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
    assert "| spo | 75 (+50; -17 .. +83) | 75 (+0; -33 .. +33) | 200 | 3 | 7 | 1 |" in page
    assert "| dpo | 75 ± 35 (+50) |" in page, "two seeds: their spread"
    assert "4 of 106 cells, 3 of the 29" in page and "dpo (seeds 0, 1)" in page


def test_a_statement_is_decided_by_its_interval_over_the_seeds_that_both_have(tmp_path):
    claim = Statement("a paper", "methods", "spo", "dpo")
    assert claim.difference([]) is None
    for seed, more, less in ((0, "1111", "0000"), (1, "1111", "0001"), (2, "0000", None)):
        made_up(method("spo", seed), tmp_path, crisp=more)
        if less is not None:
            made_up(method("dpo", seed), tmp_path, crisp=less)
    interval, seeds = claim.difference(load_results(tmp_path))
    assert seeds == [0, 1] and interval.mean == 7 / 8 and verdict(interval) == "agrees"
    back, _ = replace(claim, more="dpo", less="spo").difference(load_results(tmp_path))
    assert back.mean == -7 / 8 and verdict(back) == "disagrees"
    assert verdict(Interval(0.1, -0.1, 0.3, 8)) == "not told apart"
    page = render_page(load_results(tmp_path))
    assert "| step-wise | crisp, methods: spo | dpo | +88 (" in page and "| d3po |  | not run | 0 |" in page


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
    settings = finished({"type": "sft", "reduction": "mean"}, 1e-3, groups=4)
    cell = Cell("sft", settings, "images", budget=24, prompts=2, rows=8)
    broken = replace(cell, settings=cells.merged(settings, {"learner": {"groups_per_batch": 0}}))
    failed = command.run_all([cell, replace(broken, name="broken")], tmp_path, tmp_path / "work", jobs=1)
    assert len(failed) == 1 and failed[0].startswith("broken-seed0: ValidationError: ")
    (result,) = load_results(tmp_path)
    assert [point["network_trained"] for point in result["points"]] == [4, 8, 12], "marks at 6, 12 and 24 evaluations"
    assert result["points"][-1]["evaluations"] == 24 and result["training"]["pairs"] == 12
    first, last = (point["metrics"] for point in (result["points"][0], result["points"][-1]))
    assert first["reward"] != last["reward"] and set(pictures_metrics()) - {"detail/rebuilt"} <= set(last)
    assert len(result["points"][0]["per_picture"]["judge/crisp"]) == 4, "two captions, two pictures each"
    assert command.missing([cell, broken], tmp_path) == [broken]
