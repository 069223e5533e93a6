"""Measures and their intervals, against numbers worked out by hand or taken from the literature."""

from __future__ import annotations

import math
import random

import pytest
import torch

from rollout.intervals import paired_difference, wilson
from rollout.measures import MEASURES
from rollout.miniature.world import FINISHES, caption, render, sample_scene


def test_wilson_interval_of_a_share() -> None:
    """15 of 148: Newcombe (1998), Statistics in Medicine 17:857, Table I, score method: 0.0624 .. 0.1605."""
    found = wilson(15 / 148, 148)
    assert (found.mean, found.n) == (15 / 148, 148)
    assert found.low == pytest.approx(0.0624, abs=5e-5) and found.high == pytest.approx(0.1605, abs=5e-5)
    none = wilson(0.0, 20)  # same table, 0 of 20: 0 .. 0.1611
    assert none.low == 0.0 and none.high == pytest.approx(0.1611, abs=5e-5)


def test_normal_interval_of_scores() -> None:
    """1, 2, 3, 4: s = 1.290994, half width 1.959964 * s / 2 = 1.265151."""
    found = paired_difference([0.0] * 4, [1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5 and found.high == pytest.approx(3.765151, abs=1e-6)
    assert found.low == pytest.approx(1.234849, abs=1e-6)
    assert paired_difference([0.0], [3.0]).high == math.inf
    with pytest.raises(ValueError, match="no values"):
        paired_difference([], [])


def test_paired_difference_of_scores_uses_the_pairs() -> None:
    """Differences 1, 1, 2, 2 around a spread of 1000: mean 1.5, s = 0.577350, half width 0.565793."""
    before = [0.0, 1000.0, 2000.0, 3000.0]
    found = paired_difference(before, [1.0, 1001.0, 2002.0, 3002.0])
    assert found.mean == 1.5 and found.high - found.mean == pytest.approx(0.565793, abs=1e-6)
    with pytest.raises(ValueError, match="4 values before but 1 after"):
        paired_difference(before, [1.0])


def test_paired_difference_of_shares() -> None:
    """12 gained, 2 lost of 20: sum 10, changed 14. Agresti-Min: centre 10/22, variance (15 - 100/22) / 22^2."""
    before = [0.0] * 12 + [1.0] * 2 + [1.0] * 6
    after = [1.0] * 12 + [0.0] * 2 + [1.0] * 6
    found = paired_difference(before, after)
    half = 1.959964 * math.sqrt(15 - 100 / 22) / 22
    assert found.mean == 0.5
    assert (found.low, found.high) == (pytest.approx(10 / 22 - half), pytest.approx(10 / 22 + half))
    every = paired_difference([0.0] * 10, [1.0] * 10)
    assert every.mean == 1.0 and every.low < 0.9 and every.high == 1.0, "ten of ten is not certainty"


def test_intervals_of_shares_cover_the_truth_about_95_times_in_100() -> None:
    rng, runs, n = random.Random(0), 1500, 40
    single = paired = 0
    for _ in range(runs):
        before = [float(rng.random() < 0.3) for _ in range(n)]
        after = [max(b, float(rng.random() < 0.4)) for b in before]  # true difference 0.7 * 0.4 = 0.28
        share, difference = wilson(sum(before) / n, n), paired_difference(before, after)
        single += share.low <= 0.3 <= share.high
        paired += difference.low <= 0.28 <= difference.high
    assert 0.925 < single / runs < 0.985
    assert 0.925 < paired / runs < 0.985


def test_the_judge_measures_finish_and_caption_picture_by_picture() -> None:
    rng = random.Random(1)
    scenes = [sample_scene(rng) for _ in range(12)]
    finishes = [FINISHES[n % 3] for n in range(12)]
    images, captions = render(scenes, finishes), [caption(scene) for scene in scenes]
    found = MEASURES["judge"]()(images, captions)
    assert set(found) == {f"judge/{name}" for name in (
        "caption", "shape", "colour", "background", "position", "crisp", "soft", "hatched",
    )}  # fmt: skip
    assert all(value.dtype == torch.float32 and value.shape == (12,) for value in found.values())
    assert found["judge/caption"].mean() > 0.9
    for finish in FINISHES:
        wanted = torch.tensor([float(finish == f) for f in finishes])
        assert (found[f"judge/{finish}"] == wanted).float().mean() > 0.9
    shifted = MEASURES["judge"]()(images, captions[1:] + captions[:1])
    assert shifted["judge/caption"].mean() < 0.2
    with pytest.raises(ValueError, match="not a caption"):
        MEASURES["judge"]()(images[:1], ["a photograph of a dog"])
