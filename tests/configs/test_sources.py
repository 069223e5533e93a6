"""Objectives and what they cannot go together with: refused with fields, values, reason and fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from configs import AtelierConfig
from configs.objectives import REFERENCES, pixel_of
from configs.sources import GIVES, READS

Load = Callable[..., AtelierConfig]
Refused = Callable[..., str]
FINAL = "rollout.sampler.type=final_pairs"

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


@pytest.mark.parametrize("objective", READS)
def test_every_objective_goes_with_its_own_source(load: Load, objective: str) -> None:
    sampler, _ = READS[objective]
    config = load("{}", f"learner.objective.type={objective}", f"rollout.sampler.type={sampler}")
    sides = REFERENCES[objective]
    assert config.learner.reference_side == (sides[0] if sides else None)


def test_the_tables_name_the_same_things() -> None:
    assert {source for source, _ in READS.values()} == set(GIVES) and READS.keys() == REFERENCES.keys()


def test_a_pixel_term_of_no_weight_is_off(load: Load) -> None:
    config = load("{}", "learner.objective.type=sft", FINAL, "learner.objective.pixel.weight=0")
    assert config.learner.objective.pixel is not None and pixel_of(config.learner.objective) is None


def test_a_section_without_a_type_is_the_default_one(load: Load) -> None:
    config = load("learner: {objective: {beta: 2.0}}\nrollout: {sampler: {kappa: 701}}")
    assert (config.learner.objective.type, config.rollout.sampler.type) == ("spo", "stepwise")


def test_the_pixel_term_belongs_to_the_losses_that_have_one(refused: Refused) -> None:
    message = refused("{}", "learner.objective.type=mapo", FINAL, "learner.objective={type: mapo, pixel: {}}")
    assert "learner.objective.pixel" in message
