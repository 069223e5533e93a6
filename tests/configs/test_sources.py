"""Objectives and what they cannot go together with: refused with fields, values, reason and fix."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from configs import AtelierConfig, load_config
from configs.objectives import REFERENCES, pixel_of
from configs.sources import GIVES, OFFLINE_READS, READS

Load = Callable[..., AtelierConfig]
Refused = Callable[..., str]
FINAL = "rollout.sampler.type=final_pairs"
DOCUMENT = Path(__file__).parents[2] / "docs" / "objectives.md"
FITTING = {
    "spo": {"stepwise"},
    "d3po": {"trajectory"},
    "ddpo": {"trajectory"},
    "simpo": {"final_pairs", "pairs"},
    "dpo": {"final_pairs", "pairs"},
    "mapo": {"final_pairs", "pairs"},
    "sft": {"final_pairs", "pairs", "images"},
}
"""Objective -> the samplers and the data sets that it can learn from: method.md's, written out once more."""
SOURCES = {
    "stepwise": ("rollout.sampler.type=stepwise",),
    "final_pairs": (FINAL,),
    "trajectory": ("rollout.sampler.type=trajectory",),
    "pairs": ("data.type=pairs", "data.path=/data"),
    "images": ("data.type=images", "data.path=/data"),
}
COMBINATIONS = [(objective, source) for objective in FITTING for source in SOURCES]
PIXEL = {"spo", "simpo", "dpo", "sft"}

REFUSALS = {
    ("learner.objective.type=simpo",): (
        "learner.objective.type = simpo reads pairs of finished pictures, and rollout.sampler.type = stepwise makes "
        "pairs of single denoising steps. Set rollout.sampler.type to final_pairs, or learner.objective.type to one "
        "of spo."
    ),
    ("rollout.sampler.type=trajectory",): (
        "learner.objective.type = spo reads pairs of single denoising steps, and rollout.sampler.type = trajectory "
        "makes whole trajectories. Set rollout.sampler.type to stepwise, or learner.objective.type to one of ddpo, "
        "d3po."
    ),
    ("learner.objective.type=simpo", FINAL, "learner.reference_at=worker"): (
        "learner.reference_at = worker with learner.objective.type = simpo, which has no reference. Leave "
        "reference_at out, or set objective.type to a loss with one (spo, d3po, dpo)."
    ),
    ("learner.objective.type=dpo", FINAL, "learner.reference_at=worker"): (
        "learner.reference_at = worker with learner.objective.type = dpo: its noise is drawn by the learner, so that "
        "the reference cannot be evaluated earlier. Set reference_at to learner, or leave it out."
    ),
    ("learner.objective.type=ddpo", "rollout.sampler={type: trajectory, num_trajectories: 17}"): (
        "learner.objective.prompt_history = 16 is below rollout.sampler.num_trajectories = 17: a group's own rewards "
        "would not all be kept. Set prompt_history to 17 or more, or to 0, which normalises over each group alone."
    ),
    ("data.type=images", "data.path=x", "learner.objective.type=sft", "data.split=train", "data.format=jsonl"): (
        "data.split = train with data.format = jsonl: a split is read from the hub, where only parquet can be read a "
        "part at a time. Set data.format to parquet, or take data.split out."
    ),
    ("data.type=images", "data.path=x", "learner.objective.type=sft", "rollout.sampler.type=final_pairs"): (
        "rollout.sampler (type final_pairs) is set, and data.type = images: nothing is rolled out, so that it would "
        "have no effect. Take rollout.sampler out, or set data.type to online."
    ),
    ("learner.objective.type=sft", FINAL, "learner.objective.pixel.weight=-1"): (
        "learner.objective.pixel.weight = -1 is negative: it would reward the errors that the term measures. Set it "
        "to 0, which leaves the term out, or more."
    ),
    ("learner.objective.type=sft", FINAL, "learner.objective.pixel.latent_weight=-0.5"): (
        "learner.objective.pixel.latent_weight = -0.5 is negative: it would reward the errors that the term measures. "
        "Set it to 0, which leaves the term out, or more."
    ),
    ("learner.objective.type=dpo", FINAL, "learner.objective.pixel={weight: 0, latent_weight: 0}"): (
        "learner.objective.pixel.weight = 0 and learner.objective.pixel.latent_weight = 0: nothing is left to train "
        "on. Set one of them above 0."
    ),
}


@pytest.mark.parametrize("overrides", REFUSALS)
def test_an_impossible_combination_is_refused_with_the_reason(refused: Refused, overrides: tuple[str, ...]) -> None:
    assert REFUSALS[overrides] in refused("{}", *overrides)


@pytest.mark.parametrize(("objective", "source"), COMBINATIONS)
def test_every_objective_with_every_source(load: Load, refused: Refused, objective: str, source: str) -> None:
    """It loads, or both fields are named with their values, and each fix that is offered is one."""
    chosen = (f"learner.objective.type={objective}", *SOURCES[source])
    if source in FITTING[objective]:
        sides = REFERENCES[objective]
        assert load("{}", *chosen).learner.reference_side == (sides[0] if sides else None)
        return
    message = refused("{}", *chosen)
    field = "data.type" if source in OFFLINE_READS else "rollout.sampler.type"
    assert f"learner.objective.type = {objective} reads " in message and f"{field} = {source} " in message
    offered = re.search(rf"Set {field} to ([\w ]+), or learner\.objective\.type to one of ([\w, ]+)\.", message)
    assert offered is not None, message
    for other in offered[1].split(" or "):
        instead = SOURCES[READS[objective][0] if other == "online" else other]
        assert load("{}", chosen[0], *instead)
    for other in offered[2].split(", "):
        assert load("{}", f"learner.objective.type={other}", *SOURCES[source])


@pytest.mark.parametrize("objective", FITTING)
@pytest.mark.parametrize("side", ["worker", "learner"])
def test_every_objective_with_every_place_of_its_reference(
    load: Load, refused: Refused, objective: str, side: Literal["worker", "learner"]
) -> None:
    chosen = (f"learner.objective.type={objective}", *SOURCES[READS[objective][0]], f"learner.reference_at={side}")
    if side in REFERENCES[objective]:
        assert load("{}", *chosen).learner.reference_side == side
        return
    message = refused("{}", *chosen)
    assert f"learner.reference_at = {side} with learner.objective.type = {objective}" in message
    assert load("{}", *chosen[:-1]), "leaving it out is a fix"


@pytest.mark.parametrize("objective", FITTING)
def test_every_objective_with_the_pixel_term(load: Load, refused: Refused, objective: str) -> None:
    chosen = (f"learner.objective={{type: {objective}, pixel: {{weight: 2.0}}}}", *SOURCES[READS[objective][0]])
    if objective in PIXEL:
        assert pixel_of(load("{}", *chosen).learner.objective) is not None
    else:
        assert "learner.objective.pixel" in refused("{}", *chosen)


def test_the_documented_table_is_what_is_accepted() -> None:
    rows = [line.split("|")[1:-1] for line in DOCUMENT.read_text().splitlines() if line.count("|") == 7]
    named = [[re.findall(r"`(\w+)`", cell) for cell in row] for row in rows[2:]]
    found = {cells[0][0]: cells for cells in named}
    assert found.keys() == FITTING.keys()
    for objective, cells in found.items():
        assert set(cells[2] + cells[3]) == FITTING[objective], objective
        assert tuple(cells[4]) == REFERENCES[objective], objective
    assert {row[0].split("`")[1] for row in rows[2:] if row[5].strip() == "yes"} == PIXEL


def test_the_tables_name_the_same_things() -> None:
    assert {source for source, _ in READS.values()} == set(GIVES) and READS.keys() == REFERENCES.keys()


def test_a_pixel_term_of_no_weight_is_off(load: Load) -> None:
    config = load("{}", "learner.objective.type=sft", FINAL, "learner.objective.pixel.weight=0")
    assert config.learner.objective.pixel is not None and pixel_of(config.learner.objective) is None


def test_a_section_without_a_type_is_the_default_one(load: Load) -> None:
    config = load("learner: {objective: {beta: 2.0}}\nrollout: {sampler: {kappa: 701}}")
    assert (config.learner.objective.type, config.rollout.sampler.type) == ("spo", "stepwise")


def documented_commands() -> list[list[str]]:
    """Arguments of every `python -m learner.main` of the two pages."""
    pages = [DOCUMENT, DOCUMENT.with_name("datasets.md")]
    blocks = [block for page in pages for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    command = "python -m learner.main "
    return [shlex.split(line, comments=True)[3:] for line in lines if line.startswith(command)]


@pytest.mark.parametrize("arguments", documented_commands(), ids=lambda arguments: " ".join(arguments)[:60])
def test_a_documented_command_is_accepted(arguments: list[str]) -> None:
    named = arguments[0] == "--config"
    config = load_config(arguments[1] if named else None, arguments[2:] if named else arguments)
    assert config.learner.objective.type in FITTING
