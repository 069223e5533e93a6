"""Both pages in a real headless Chromium: pictures, zoom, keys, votes that survive a reload, the saved file."""

from __future__ import annotations

import json
import select
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rollout.evaluation.ballot import blinded_pairs, voting_key, voting_page
from rollout.evaluation.lora import BASE, Candidate
from rollout.evaluation.page import comparison_page
from rollout.evaluation.report import results
from rollout.evaluation.scoring import Scores
from rollout.votes import main
from tests.rollout.evaluation.chromium import Browser, find_chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
]
LONG = "mixture+0.5*[clip_score-clip-eb880d3d-224px-crop]+1*[(x-5)/2 step_aware-spm-df918f23-224px]"
PROMPTS = [f"picture {n} <b>&amp; </script>" for n in range(6)]
SETTINGS = {
    "base": "b", "base_fingerprint": "f", "sampler": "ddim", "steps": 20, "guidance": 5.0, "eta": 1.0, "seed": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    generator = np.random.default_rng(0)
    images = {name: generator.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8) for name in (BASE, "x")}
    scores = {
        name: Scores({LONG: generator.normal(size=6).tolist()}, {"m/one": [1.0] * 6}, {"m/all": 2.0, "d/all": 3.0})
        for name in images
    }
    entrants = [Candidate(BASE, None, BASE), Candidate("x", None, "1", ["is only a test"])]
    found = results(SETTINGS, PROMPTS, entrants, scores)
    pairs = blinded_pairs(list(images), 6, seed=0)
    (folder / "evaluate.html").write_text(comparison_page(found, images, 6), encoding="utf-8")
    (folder / "vote.html").write_text(voting_page(found, images, pairs), encoding="utf-8")
    (folder / "votes_key.json").write_text(json.dumps(voting_key(found, pairs)), encoding="utf-8")
    (folder / "votes").mkdir()
    return folder


@pytest.fixture
def browser(study: Path, tmp_path: Path) -> Iterator[Browser]:
    program = find_chromium()
    assert program is not None
    with Browser(program, tmp_path / "profile", study / "votes") as browser:
        browser.allow_downloads()
        yield browser


def text(browser: Browser, element: str) -> str:
    return browser.run(f"document.getElementById('{element}').textContent")


def test_comparison_page(study: Path, browser: Browser) -> None:
    browser.open(study / "evaluate.html")
    browser.until("[...document.images].filter(i => i.complete && i.naturalWidth === 64).length >= 2")
    assert browser.run("document.querySelectorAll('#pictures > li').length") == 6
    assert browser.run("document.querySelector('#pictures .prompt').textContent").startswith(PROMPTS[0])
    assert "x is only a test" in browser.run("document.querySelector('.warning').textContent")
    assert browser.run("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    assert browser.run("document.querySelectorAll('#metrics > div tbody tr').length") == 2, "the scorer's two models"
    folded = browser.run("[...document.querySelectorAll('#metrics details[open] summary')].map(e => e.textContent)")
    assert folded == ["m (2), 0 of 1 with intervals changed beyond chance", "d (1)"]
    assert text(browser, "count") == "6 of 6 pictures a model"
    browser.run("document.getElementById('filter').focus()")
    browser.insert("picture 4")
    browser.until("document.querySelectorAll('#pictures > li').length === 1")
    browser.run(
        "(() => { const f = document.getElementById('filter'); f.value = ''; f.dispatchEvent(new Event('input')); })()"
    )
    browser.click("#pictures li:nth-child(2) button")
    browser.until("document.getElementById('zoom').open && document.getElementById('zoom-scale').textContent !== ''")
    assert (text(browser, "zoom-title"), text(browser, "zoom-prompt")) == (BASE, PROMPTS[1])
    scale = float(text(browser, "zoom-scale").rstrip("×"))
    browser.key("ArrowRight")
    browser.key("ArrowDown")
    browser.key("+")
    browser.until(f"document.getElementById('zoom-scale').textContent === '{2 * scale:g}×'")
    assert (text(browser, "zoom-title"), text(browser, "zoom-prompt")) == ("x", PROMPTS[2])
    assert browser.run("document.getElementById('zoom-image').style.width") == f"{64 * 2 * scale:g}px"
    browser.click("#zoom-close")
    assert browser.run("document.getElementById('zoom').open") is False


def test_votes_survive_a_reload_and_the_saved_file_is_counted(
    study: Path, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    browser.open(study / "vote.html")
    assert browser.run("document.getElementById('question-alignment').disabled") is True
    assert PROMPTS[0][:7] not in text(browser, "prompt"), "the text is hidden until looks are judged"
    browser.click("#save")
    assert "name first" in text(browser, "status")
    browser.click("#voter")
    browser.insert("Anna 1")
    browser.click("#flaws-left")
    browser.click("#appeal-right")
    assert text(browser, "prompt") in PROMPTS
    browser.click("#alignment-tie")
    assert "1 of 6 pairs" in text(browser, "status")
    browser.key("n")
    for key in "123":
        browser.key(key)
    browser.reload()
    assert "2 of 6 pairs" in text(browser, "status") and text(browser, "place") == "Pair 2 of 6"
    assert browser.run("document.getElementById('appeal-tie').checked") is True
    browser.click("#save")
    file = study / "votes" / "votes-Anna-1.json"
    for _ in range(600):
        if file.exists() and file.stat().st_size:
            break
        select.select([], [], [], 0.1)
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved["voter"] == "Anna 1"
    assert saved["votes"] == {
        "p0000": {"flaws": "left", "appeal": "right", "alignment": "tie"},
        "p0001": {"flaws": "left", "appeal": "tie", "alignment": "right"},
    }
    assert main(["aggregate", str(file)]) == 0
    assert "x against base, 1 voter(s)" in capsys.readouterr().out


def test_a_voter_is_told_when_the_browser_keeps_nothing(study: Path, browser: Browser) -> None:
    browser.open(study / "vote.html")
    browser.run("void (Storage.prototype.setItem = () => { throw new Error('full'); })")
    browser.click("#flaws-left")
    assert "keeps nothing; save to a file before closing the page. 0 of 6 pairs answered" in text(browser, "status")
    browser.run("localStorage.clear()")


def test_no_page_overflows_a_phone(study: Path, browser: Browser) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False)
    for name in ("evaluate.html", "vote.html"):
        browser.open(study / name)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_long_name_leaves_the_figures_in_view(study: Path, browser: Browser) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=1100, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(study / "evaluate.html")
    assert browser.run("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#metrics > div'))")


def test_find_chromium_is_what_is_run() -> None:
    assert shutil.which(str(find_chromium()))
