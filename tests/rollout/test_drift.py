"""Statistics of a set of pictures, their changes, and the limit that ends a run."""

from __future__ import annotations

import numpy as np
import pytest

from configs.statistics import ACROSS, APPEARANCE, STATISTICS
from reward.diversity import pixel_embedding
from rollout.drift import changes, exceeded, picture_statistics

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 16, 20, 3), dtype=np.uint8)
PROMPTS = [f"prompt {n}" for n in range(6)]


def test_batches_change_nothing_and_every_statistic_is_there() -> None:
    one, all_at_once = (picture_statistics(PICTURES, PROMPTS, pixel_embedding, size) for size in (1, 6))
    assert one == pytest.approx(all_at_once, rel=1e-5)
    assert list(one) == [*APPEARANCE, *ACROSS]
    assert list(picture_statistics(PICTURES, PROMPTS[:3] * 2, pixel_embedding, 4)) == list(STATISTICS)


def test_changes_tell_which_way() -> None:
    """Halving every deviation from mid-grey halves brightness spread and colourfulness; duplicates are one picture."""
    before = picture_statistics(PICTURES, PROMPTS, pixel_embedding, 6)
    faded = np.rint(127.5 + 0.5 * (PICTURES - 127.5)).astype(np.uint8)
    moved = changes(before, picture_statistics(faded, PROMPTS, pixel_embedding, 6))
    for tag in ("appearance/saturation", "appearance/brightness_spread"):
        assert moved[tag] == pytest.approx(-before[tag] / 2, rel=0.01)
    same = changes(before, picture_statistics(PICTURES[[2] * 6], PROMPTS, pixel_embedding, 6))
    assert same["diversity/across_vendi"] == pytest.approx(1 - before["diversity/across_vendi"])
    assert same["diversity/across_spread"] == pytest.approx(-before["diversity/across_spread"])
    assert same["appearance/palette_divergence"] == pytest.approx(-before["appearance/palette_divergence"])


def test_a_limit_counts_either_way_and_names_change_and_limit() -> None:
    limits = {"appearance/saturation": 20.0, "diversity/across_vendi": 3.0}
    assert exceeded(limits, {}) is None and exceeded({}, {"appearance/saturation": 99.0}) is None
    assert exceeded(limits, {"appearance/saturation": 20.0, "diversity/across_vendi": -3.0}) is None
    words = exceeded(limits, {"appearance/saturation": 21.5, "diversity/across_vendi": -3.25, "eval/reward": 9.0})
    assert words is not None and "saturation has changed by +21.5 (limit 20); diversity/across_vendi" in words
    assert "changed by -3.25 (limit 3)" in words and "evaluation.stop_on_drift" in words
