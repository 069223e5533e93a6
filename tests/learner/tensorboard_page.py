"""A run in TensorBoard, in a real headless Chromium: curves and picture on one page. The README's picture is made by

python -m tests.learner.tensorboard_page runs/quickstart --out docs/images/tensorboard.png
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from tensorboard import program

from tests.polling import until
from tests.rollout.evaluation.chromium import TIMEOUT_SEC, Browser, find_chromium

CURVES = ("eval/judge/crisp", "eval/reward", "reward/final_mean", "loss/total", "ratio/win_mean")
PICTURES = ("eval/before_after",)
WIDTH, HEIGHT = 1500, 860
LEAST_PIXELS = 50
"""Of a curve's colour, where it is drawn."""

LOADED = """[...document.querySelectorAll('image-card')]
    .filter(card => [...card.querySelectorAll('img')].some(image => image.complete && image.naturalWidth > 0))
    .map(card => card.querySelector('tb-truncated-path').title)"""
CANVASES = """[...document.querySelectorAll('scalar-card')].filter(card => card.querySelector('canvas')).map(card => {
    const {x, y, width, height} = card.querySelector('canvas').getBoundingClientRect();
    return [card.querySelector('tb-truncated-path').title, {x, y, width, height, scale: 1}];
})"""
COLOUR = "getComputedStyle(document.querySelector('.run-color-swatch')).backgroundColor.match(/\\d+/g).map(Number)"
UNCHECK = """[...document.querySelectorAll('mat-checkbox')].filter(box => box.innerText.includes(LABEL))
    .map(box => box.querySelector('input')).filter(input => input.checked).forEach(input => input.click())"""
CLOSE = "button[aria-label='Close side pane']"


@contextmanager
def tensorboard_page(tb_dir: Path, curves: Sequence[str], pictures: Sequence[str], profile: Path) -> Iterator[Browser]:
    """TensorBoard's Time Series page over `tb_dir`, once it shows just these tags, unsmoothed and to their full height.

    Fails the test when they do not appear; RuntimeError without Chromium.
    """
    if (chromium := find_chromium()) is None:
        raise RuntimeError("no Chromium on this machine")
    server = program.TensorBoard()
    server.configure(argv=["tensorboard", "--logdir", str(tb_dir), "--port", "0", "--load_fast", "false"])
    tags = "|".join([*curves, *pictures])
    address = f"{server.launch()}?smoothing=0&tagFilter={quote(f'^({tags})$', safe='')}#timeseries"
    with Browser(chromium, profile, profile) as browser:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.open(address)
        browser.until(f"document.querySelector({json.dumps(CLOSE)}) !== null")
        for label in ("Ignore outliers", "Enable step selection"):
            browser.run(UNCHECK.replace("LABEL", json.dumps(label)))
        browser.click(CLOSE)  # the pane of settings, which takes the place of a column

        def explain() -> str:
            return f"drawn: {curves_drawn(browser)}, loaded: {browser.run(LOADED)}"

        until(lambda: set(browser.run(LOADED)) == set(pictures), TIMEOUT_SEC, explain)
        until(lambda: curves_drawn(browser) == set(curves), TIMEOUT_SEC, explain)
        yield browser


def curves_drawn(browser: Browser) -> set[str]:
    """Tags in whose charts a line of the run's colour can be seen. Those out of sight are not drawn."""
    colour, found = np.array(browser.run(COLOUR)), set()
    for tag, place in browser.run(CANVASES):
        answer = browser.call("Page.captureScreenshot", format="png", clip=place)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB"))
        if int((pixels == colour).all(axis=-1).sum()) >= LEAST_PIXELS:
            found.add(tag)
    return found


def main() -> None:
    """Write a screenshot."""
    parser = argparse.ArgumentParser(prog="python -m tests.learner.tensorboard_page", description="A run's picture.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,  # Chromium may still write while it ends
        tensorboard_page(options.run_dir / "tb", CURVES, PICTURES, Path(profile)) as browser,
    ):
        browser.screenshot(options.out, WIDTH, HEIGHT)


if __name__ == "__main__":
    main()
