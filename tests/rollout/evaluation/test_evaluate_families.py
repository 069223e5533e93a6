"""The evaluation command on the other families: their own steps and guidance, their LoRAs, and the AI look."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.load import load_config
from configs.model import LoraSection, ModelSection, NoiseSection
from configs.statistics import STATISTICS
from reward.diversity import pixel_embedding
from rollout.drift import picture_statistics
from rollout.evaluate import main
from rollout.evaluation.settings import GUIDANCE, SamplingSettings
from rollout.evaluator import to_uint8
from rollout.policy import DiffusionPolicy
from rollout.sampling import sample_images
from tests.rollout.evaluation.exported import STEPS, exported_policy, stored
from tests.tiny_families import tiny_family

PROMPTS = ["a red dot", "two dots", "a red dot", "two dots"]
STRENGTH = 0.1
"""Stronger adapters make random networks chaotic: a rounding error then grows into another picture."""
PRESETS = {"sd": "sd15_spo", "sdxl": "sdxl_mspo", "pixart": "pixart_spo", "sd3": "sd3_spo", "flux": "flux_spo"}
GIVEN = ["--steps", str(STEPS), "--image-size", "32", "--seed", "20", "--scorers"]


@pytest.fixture(scope="module", params=["sdxl", "pixart", "sd3", "flux"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@dataclass
class Trained:
    """A policy, and the run that exported it."""

    policy: DiffusionPolicy
    model: ModelSection
    run: Path


@pytest.fixture(scope="module")
def trained(family: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    base, run = tmp_path_factory.mktemp(family), tmp_path_factory.mktemp("runs") / "taste-1"
    tiny_family(family, base)
    model = ModelSection(family=family, pretrained=str(base), image_size=32, lora=LoraSection(rank=2, alpha=6.0))
    noise = NoiseSection(num_steps=STEPS, guidance_scale=GUIDANCE[family])
    return Trained(exported_policy(model, run, STRENGTH, noise), model, run)


@pytest.fixture(scope="module")
def done(family: str, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """OUT and what was printed. A second, weaker LoRA would show if the first were still in place."""
    base, run = Path(trained.model.pretrained), trained.run
    out, prompts = tmp_path_factory.mktemp("out") / "evaluation", base / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS[:2]))
    exported_policy(trained.model, run.with_name("taste-2"), STRENGTH / 4)
    given = ["--base", str(base), "--family", family, "--prompts", str(prompts), "--repeats", "2", "--out", str(out)]
    loras = ["--lora", str(run), "--lora", str(run.with_name("taste-2"))]
    limits = ["--warn-change", "appearance/saturation=0.001", "diversity/across_vendi=100"]
    with redirect_stdout(io.StringIO()) as said:
        assert main([*given, *GIVEN, *loras, "--measures", "appearance", "diversity", *limits]) == 0
    return out, said.getvalue()


def test_pictures_are_those_of_the_exporting_policy_and_of_its_base(trained: Trained, done: tuple[Path, str]) -> None:
    wanted = to_uint8(sample_images(trained.policy, PROMPTS, range(20, 24))).astype(int)
    with trained.policy.reference():
        base_wanted = to_uint8(sample_images(trained.policy, PROMPTS, range(20, 24))).astype(int)
    assert np.abs(wanted - base_wanted).max() > 5, "the adapter must matter for this test"
    with torch.no_grad():
        for name, parameter in trained.policy.trainable_parameters():
            parameter.mul_(0.25 if ".lora_B." in name else 1.0)
    weaker = to_uint8(sample_images(trained.policy, PROMPTS, range(20, 24))).astype(int)
    folder = done[0] / "images"
    for name, pictures in (("taste-1", wanted), ("base", base_wanted), ("taste-2", weaker)):
        assert np.abs(stored(folder / name) - pictures).max() <= 1, name


def test_the_look_and_diversity_are_told_as_changes_from_the_base(family: str, done: tuple[Path, str]) -> None:
    out, said = done
    found = json.loads((out / "results.json").read_text())
    assert found["settings"]["sampler"] == ("flow_sde" if family in ("sd3", "flux") else "ddim")
    assert found["settings"]["guidance"] == GUIDANCE[family]
    statistics = {
        name: picture_statistics(stored(out / "images" / name), PROMPTS, pixel_embedding, 4)
        for name in ("base", "taste-1")
    }
    assert found["metrics"].keys() == set(STATISTICS) == statistics["base"].keys()
    for tag, metric in found["metrics"].items():
        entry, start = metric["candidates"]["taste-1"], statistics["base"][tag]
        assert entry["mean"]["mean"] == pytest.approx(statistics["taste-1"][tag], rel=1e-4, abs=1e-6)
        change = statistics["taste-1"][tag] - start
        assert entry["difference"]["mean"] == pytest.approx(change, rel=1e-3, abs=1e-5) and "win_rate" not in entry
        assert (metric["kind"] == "set") == (entry["mean"]["low"] is None)
    (warning,) = found["candidates"]["taste-1"]["warnings"]
    assert warning.startswith("appearance/saturation has changed by") and warning.endswith("(limit 0.001)")
    assert len(found["candidates"]["taste-2"]["warnings"]) == 1 and found["candidates"]["base"]["warnings"] == []
    assert f"warning: taste-1 {warning}" in said
    random = "noise level 0.7" if family in ("sd3", "flux") else "eta 1"
    assert f"3 steps, guidance {GUIDANCE[family]:g}, {random}, seeds from 20" in said


def test_guidance_is_the_presets() -> None:
    assert {family: load_config(preset).noise.guidance_scale for family, preset in PRESETS.items()} == GUIDANCE
    for family, preset in PRESETS.items():
        noise = load_config(preset).noise
        settings = SamplingSettings("x", family)
        assert settings.noise().flow_noise_level == noise.flow_noise_level and settings.noise().eta == noise.eta


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--family", "sd3", "--eta", "1"],
            "--eta 1: family sd3 does not read it; how random its steps are is --noise",
        ),
        (["--family", "sdxl", "--noise-level", "0.5"], "--noise-level 0.5: family sdxl does not read it"),
        (["--warn-change", "appearance/sharpness=1"], "no such statistic; choose from appearance/high_frequency"),
        (["--warn-change", "appearance/saturation=1"], "nothing measures it; add --measures appearance"),
        (["--measures", "diversity", "--warn-change", "diversity/across_vendi=x"], "expected TAG=NUMBER"),
        (["--measures", "diversity", "--warn-change", "diversity/across_vendi=0"], "has to be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    assert main(["--out", str(tmp_path / "out"), *given]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
