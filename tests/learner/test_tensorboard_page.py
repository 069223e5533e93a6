"""What a run reports, in TensorBoard in a real headless Chromium: curves are drawn, the grid of pictures loads."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from learner.telemetry import Telemetry
from rollout.contact_sheet import before_after
from tests.learner.tensorboard_page import curves_drawn, tensorboard_page
from tests.rollout.evaluation.chromium import find_chromium
from tests.rollout.test_contact_sheet import pictures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
]

SIZE = "image => [image.naturalWidth, image.naturalHeight]"


def test_curves_and_grid_are_seen(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path / "run")
    for step in range(9):
        telemetry.scalars(step, {"eval/reward": 4.0 + step, "reward/final_mean": (-1.0) ** step, "pairs/trained": 8})
    sheet = before_after(pictures(4), pictures(4, seed=1), ["a", "b", "c", "d"])
    telemetry.images(8, {"eval/before_after": sheet})
    telemetry.close()

    curves = ("eval/reward", "reward/final_mean")
    with tensorboard_page(tmp_path / "run" / "tb", curves, ("eval/before_after",), tmp_path / "chromium") as browser:
        shown = browser.run(f"({SIZE})(document.querySelector('image-card img'))")
        assert tuple(shown) == Image.open(io.BytesIO(sheet)).size
        browser.run("document.querySelector('scalar-card canvas').style.visibility = 'hidden'")
        assert curves_drawn(browser) == {"reward/final_mean"}, "a chart without its curve does not count"
