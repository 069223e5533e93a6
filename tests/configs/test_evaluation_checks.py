"""Held-out scorers stay held out; limits of drift are on statistics that exist and are measured."""

from __future__ import annotations

from typing import Any

import pytest

from configs.errors import ConfigError
from configs.load import build_config

HPS = {"type": "hps", "version": "2.1", "checkpoint": "hps.pt"}
CLIP = {"type": "clip_score", "clip": "clip"}
PICK = {"type": "pickscore", "clip": "pick"}


def refused(config: dict[str, Any], *texts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(config)
    for text in texts:
        assert text in str(caught.value), str(caught.value)


def mixture(*scorers: dict[str, Any]) -> dict[str, Any]:
    return {"type": "mixture", "parts": [{"scorer": scorer, "weight": 1.0} for scorer in scorers]}


@pytest.mark.parametrize(
    ("trained", "held_out"),
    [
        (HPS, HPS),
        (mixture(CLIP, HPS), HPS),
        (HPS, mixture(CLIP, HPS)),
        ({"type": "step_aware"}, {"type": "step_aware"}),
    ],
)
def test_what_trains_is_not_held_out(trained: dict[str, Any], held_out: dict[str, Any]) -> None:
    config = {"rollout": {"scorer": trained}, "evaluation": {"scorers": [PICK, held_out]}}
    refused(config, "evaluation.scorers[1]", "is in use as rollout.scorer", "Take it out")


def test_what_ranks_final_pairs_is_not_held_out() -> None:
    for key, value in (("mixture", [{"scorer": HPS, "weight": 1.0}]), ("flaws", HPS)):
        sampler = {"type": "final_pairs", key: value}
        config = {"rollout": {"sampler": sampler}, "learner": {"objective": {"type": "simpo"}}}
        build_config({**config, "evaluation": {"scorers": [CLIP, PICK]}})
        refused({**config, "evaluation": {"scorers": [HPS]}}, f"in use as rollout.sampler.{key}")


def test_none_counts_twice_and_others_are_welcome() -> None:
    refused({"evaluation": {"scorers": [HPS, CLIP, HPS]}}, "evaluation.scorers[2] (type hps) is there already")
    other = {**HPS, "version": "2.0"}
    scorers = build_config({"rollout": {"scorer": HPS}, "evaluation": {"scorers": [other, CLIP]}}).evaluation.scorers
    assert [scorer.type for scorer in scorers] == ["hps", "clip_score"]


@pytest.mark.parametrize(
    ("evaluation", "texts"),
    [
        ({"stop_on_drift": {"appearance/saturatoin": 3.0}}, ["holds appearance/saturatoin", "appearance/saturation"]),
        ({"stop_on_drift": {"diversity/within_vendi": 1.0}}, ["evaluation.pictures_per_prompt = 1"]),
        ({"stop_on_drift": {"diversity/across_vendi": 1.0}, "num_prompts": 1, "grid_size": 1}, ["num_prompts = 1"]),
        ({"stop_on_drift": {"appearance/saturation": 3.0}, "every_batches": None}, ["every_batches = null"]),
        ({"stop_on_drift": {"appearance/saturation": 0.0}}, ["above 0"]),
        ({"scorers": [{"type": "hps", "version": 2.2, "checkpoint": "x"}]}, ["version", "2.0, 2.1"]),
        ({"scorers": [{"type": "nothing"}]}, ["nothing"]),
    ],
)
def test_limits_that_cannot_hold(evaluation: dict[str, Any], texts: list[str]) -> None:
    refused({"evaluation": {"every_batches": 5, **evaluation}}, *texts)


def test_a_version_that_yaml_reads_as_a_number() -> None:
    scorers = build_config({"evaluation": {"scorers": [{**HPS, "version": 2.1}]}}).evaluation.scorers
    assert scorers[0].version == "2.1"  # type: ignore[union-attr]


def test_limits_that_can() -> None:
    evaluation = {"every_batches": 5, "stop_on_drift": {"diversity/within_vendi": 1.0}, "pictures_per_prompt": 2}
    assert build_config({"evaluation": evaluation}).evaluation.stop_on_drift == {"diversity/within_vendi": 1.0}
