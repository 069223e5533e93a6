"""The miniature as it ships: it loads without our code, fits its card, and the preference model keeps its word."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from reward.step_aware import StepAwarePreferenceModel
from rollout.miniature.judge import Judge
from rollout.miniature.measure import reading_accuracy, reconstruct
from rollout.miniature.preference_data import sample_pairs, vary_pictures
from rollout.miniature.tokens import write_tokenizer
from rollout.miniature.train_denoiser import tokenise
from rollout.miniature.training import SHIPPED, sample_batch
from rollout.miniature.world import is_heldout, render

LIMIT_BYTES = 12_000_000


@pytest.fixture(scope="module")
def figures() -> dict:
    return json.loads((SHIPPED / "figures.json").read_text())


def shipped_files() -> list[Path]:
    return sorted(p for name in ("pipeline", "spm") for p in (SHIPPED / name).rglob("*") if p.is_file())


def test_pipeline_loads_with_nothing_of_ours(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules.update(rollout=None, reward=None, configs=None, learner=None)\n"
        "import torch; from diffusers import StableDiffusionPipeline\n"
        f"p = StableDiffusionPipeline.from_pretrained({str(SHIPPED / 'pipeline')!r}, dtype=torch.float32)\n"
        "draw = torch.Generator().manual_seed(0)\n"
        "out = p('a small red circle on the left on a white background', num_inference_steps=2, generator=draw)\n"
        "assert p.safety_checker is None and out.images[0].size == (64, 64)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_stored_figures_are_those_of_the_shipped_files(figures: dict) -> None:
    files = shipped_files()
    assert figures["sizes"]["bytes"]["all files"] == sum(p.stat().st_size for p in files) <= LIMIT_BYTES
    for path in files:
        if path.suffix == ".safetensors":
            assert figures["sizes"]["bytes"][str(path.relative_to(SHIPPED))] == path.stat().st_size


def test_stored_figures_meet_the_acceptance(figures: dict) -> None:
    assert figures["judge"]["renders"]["all_and_finish"] >= 0.98
    assert figures["judge"]["reconstructions"]["all_and_finish"] >= 0.95
    assert figures["heldout"]["captions"] == 256 and figures["heldout"]["core"] >= 0.80
    assert min(figures["heldout"][finish] for finish in ("crisp", "soft", "hatched")) >= 0.10
    assert figures["preference"]["finish"]["0"] >= 0.90 and figures["preference"]["finish"]["501"] >= 0.75


def test_card_states_the_stored_figures(figures: dict) -> None:
    card = (SHIPPED / "README.md").read_text()
    assert f"**{figures['heldout']['core']:.1%}**" in card
    assert f"{figures['sizes']['bytes']['all files']:,} bytes" in card


def test_judge_reads_the_autoencoders_reconstructions() -> None:
    vae = AutoencoderKL.from_pretrained(SHIPPED / "pipeline" / "vae", torch_dtype=torch.float32)
    scenes, finishes, draw = sample_batch(21, 0, 128)
    shares = reading_accuracy(reconstruct(vae, render(scenes, finishes, draw)), scenes, finishes, Judge())
    assert shares["core"] >= 0.95 and shares["finish"] >= 0.95


def test_pairs_prefer_crisp_and_captions() -> None:
    pairs = sample_pairs(200, "test", "heldout", {"finish": 1.0})
    readings = [Judge().read(images) for images in (pairs.first, pairs.second)]
    for label, *seen in zip(pairs.label.tolist(), *readings, strict=True):
        winner, loser = seen if label == 1 else reversed(seen)
        assert winner.finish == "crisp" and loser.finish != "crisp" and winner.scene == loser.scene
    assert all(is_heldout(text) for text in pairs.captions)


def test_vary_leaves_pictures_in_range_and_the_finish_readable() -> None:
    pairs = sample_pairs(100, "test", "heldout", {"finish": 1.0})
    varied = vary_pictures(pairs.first, torch.Generator().manual_seed(1))
    assert varied.min() >= -1 and varied.max() <= 1
    seen = Judge().read(varied)
    crisp = [reading.finish == "crisp" for reading in seen]
    assert sum(a == (b == 1) for a, b in zip(crisp, pairs.label.tolist(), strict=True)) >= 90


@torch.no_grad()
def test_preference_model_reads_the_finish_and_not_the_tint(tmp_path: Path, figures: dict) -> None:
    model = StepAwarePreferenceModel.from_pretrained(SHIPPED / "spm", SHIPPED / "spm" / "step_aware.safetensors")
    pairs = sample_pairs(128, "tint", "heldout", {"finish": 1.0})
    tokens, clean = tokenise(write_tokenizer(tmp_path), pairs.captions), torch.zeros(128, dtype=torch.int64)
    tint = 0.02 * torch.randn(128, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    first, second, tinted = (model.score(x, tokens, clean) for x in (pairs.first, pairs.second, pairs.first + tint))
    finish = torch.where(pairs.label == 1, first - second, second - first).mean()
    assert (tinted - first).abs().mean() < finish / 5
    assert figures["score"]["tint"]["0"] < figures["score"]["finish"]["0"] / 5


@torch.no_grad()
def test_preference_model_tells_crisp_renders(tmp_path: Path) -> None:
    model = StepAwarePreferenceModel.from_pretrained(SHIPPED / "spm", SHIPPED / "spm" / "step_aware.safetensors")
    tokenizer = write_tokenizer(tmp_path)
    pairs = sample_pairs(128, "test", "heldout", {"finish": 1.0})
    tokens, clean = tokenise(tokenizer, pairs.captions), torch.zeros(128, dtype=torch.int64)
    first, second = (model.score(images, tokens, clean) for images in (pairs.first, pairs.second))
    right = torch.where(pairs.label == 1, first > second, second > first)
    assert right.float().mean() >= 0.90


def test_shipped_tokenizer_is_the_one_the_code_writes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        for folder in (SHIPPED / "pipeline" / "tokenizer", SHIPPED / "spm"):
            assert (folder / name).read_text() == (tmp_path / name).read_text()
