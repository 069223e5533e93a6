"""The evaluation command on a tiny pipeline in the real format: parity, resumption, results, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from configs.model import LoraSection, ModelSection
from reward.step_aware_scorer import StepAwareScorer
from rollout.evaluate import main
from rollout.evaluator import to_uint8
from rollout.policy import DiffusionPolicy
from rollout.sampling import sample_images
from tests.rollout.evaluation.exported import exported_policy, stored

PROMPTS = ["a red dot", "a blue dot", "two dots", "no dots </script><b>"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def model(base: Path) -> ModelSection:
    lora = LoraSection(rank=3, alpha=6.0, target_modules=["to_q", "to_v", "conv1"])
    return ModelSection(pretrained=str(base), lora=lora)


@pytest.fixture(scope="module")
def run_dir(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "taste-1"


@pytest.fixture(scope="module")
def policy(base: Path, run_dir: Path) -> DiffusionPolicy:
    return exported_policy(model(base), run_dir, 0.3)


@pytest.fixture(scope="module")
def done(
    base: Path,
    prompts: Path,
    policy: DiffusionPolicy,
    run_dir: Path,
    clip: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("out") / "evaluation"
    assert main([*arguments(base, prompts, out, clip), "--lora", str(run_dir), "--measures"]) == 0
    return out


def arguments(base: Path, prompts: Path, out: Path, clip: Path | None) -> list[str]:
    scorers = [f"step_aware:clip={clip}"] if clip else []
    return [
        *("--base", str(base), "--prompts", str(prompts), "--out", str(out), "--steps", "3", "--seed", "20"),
        *("--batch-size", "3", "--scorers", *scorers),
    ]


def test_pictures_are_those_of_the_exporting_policy_and_of_its_base(done: Path, policy: DiffusionPolicy) -> None:
    seeds = range(20, 24)
    wanted = to_uint8(sample_images(policy, PROMPTS, seeds, batch_size=3)).astype(int)
    with policy.reference():
        base_wanted = to_uint8(sample_images(policy, PROMPTS, seeds, batch_size=3)).astype(int)
    assert np.abs(wanted - base_wanted).max() > 10, "the adapter must matter for this test"
    assert np.abs(stored(done / "images" / "taste-1") - wanted).max() <= 1
    assert np.abs(stored(done / "images" / "base") - base_wanted).max() <= 1


def test_results_keep_settings_beside_every_score_and_add_up(done: Path, clip: Path) -> None:
    found = json.loads((done / "results.json").read_text())
    assert found["prompts"] == PROMPTS and found["seeds"] == [20, 21, 22, 23]
    (name,) = found["metrics"]
    metric = found["metrics"][name]
    assert metric["kind"] == "score" and name.startswith("step_aware-")
    assert {k: metric["settings"][k] for k in ("sampler", "steps", "guidance", "eta", "seed")} == {
        "sampler": "ddim", "steps": 3, "guidance": 5.0, "eta": 1.0, "seed": 20,
    }  # fmt: skip
    scorer = StepAwareScorer.from_pretrained(clip)
    for candidate in ("base", "taste-1"):
        pixels = torch.from_numpy(stored(done / "images" / candidate)).permute(0, 3, 1, 2).float() / 127.5 - 1
        wanted = scorer.score(pixels, PROMPTS, torch.zeros(4, dtype=torch.int64)).tolist()
        assert found["per_picture"][candidate][name] == pytest.approx(wanted, abs=1e-5)
        mean = metric["candidates"][candidate]["mean"]
        assert mean["mean"] == pytest.approx(sum(wanted) / 4, abs=1e-5) and mean["low"] <= mean["mean"] <= mean["high"]
    before, after = (found["per_picture"][c][name] for c in ("base", "taste-1"))
    entry = metric["candidates"]["taste-1"]
    assert entry["difference"]["mean"] == pytest.approx((sum(after) - sum(before)) / 4, abs=1e-5)
    rate = entry["win_rate"]
    assert rate["wins"] == sum(b > a for a, b in zip(before, after, strict=True))
    assert rate["wins"] + rate["ties"] + rate["losses"] == 4


def test_sheet_and_pages_are_written_and_need_nothing_else(done: Path) -> None:
    assert Image.open(done / "sheet.png").width > 300
    for name in ("evaluate.html", "vote.html"):
        text = (done / name).read_text()
        assert "http://" not in text and "https://" not in text and ' src="' not in text.replace('src="data:', "")
        assert "default-src 'none'" in text and "{{" not in text
        assert "</script><b>" not in text, "a prompt cannot end the script"
        assert text.count("data:image/png;base64,") >= 8
    assert "taste-1" not in (done / "vote.html").read_text()


def test_pictures_on_disk_are_kept_and_damaged_or_missing_ones_sampled_again(
    done: Path, base: Path, prompts: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    folder = out / "images" / "taste-1"
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    (folder / "0001.png").unlink()
    (folder / "0002.png").write_bytes(before["0002.png"][:100])
    untouched = (folder / "0000.png").stat().st_mtime_ns
    assert main([*arguments(base, prompts, out, None), "--lora", str(run_dir)]) == 0
    assert "base:" not in capsys.readouterr().out, "nothing of the base was missing"
    assert (folder / "0000.png").stat().st_mtime_ns == untouched
    again = {path.name: np.asarray(Image.open(path)) for path in folder.glob("*.png")}
    first = stored(done / "images" / "taste-1").astype(int)
    assert len(again) == 4 and max(np.abs(again[f"000{n}.png"] - first[n]).max() for n in range(4)) <= 1


def refused(capsys: pytest.CaptureFixture[str], given: list[str]) -> str:
    assert main(given) == 1
    return capsys.readouterr().err


def test_a_folder_of_another_evaluation_is_refused(
    done: Path, base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(base, prompts, done, None)
    assert "guidance: 5.0 -> 7.0" in refused(capsys, [*given, "--guidance", "7"])
    other = tmp_path / "other.txt"
    other.write_text("a red dot\na green dot\n")
    message = refused(capsys, arguments(base, other, done, None))
    assert "number 1 is 'a blue dot' there, 'a green dot' now" in message
    assert "not an evaluation" in refused(capsys, arguments(base, prompts, tmp_path, None))


def test_a_lora_of_another_model_is_refused_by_layer(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "elsewhere": {
            "unet.down_blocks.9.to_q.lora_A.weight": (2, 32),
            "unet.down_blocks.9.to_q.lora_B.weight": (32, 2),
        },
        "wide": {
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": (2, 320),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": (320, 2),
        },
        "control": {"controlnet.x.lora_A.weight": (2, 8), "controlnet.x.lora_B.weight": (8, 2)},
        "tall": {
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": (2, 32),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": (48, 2),
        },
    }
    for name, shapes in files.items():
        save_file({key: torch.ones(shape) for key, shape in shapes.items()}, tmp_path / f"{name}.safetensors")
    given = [*arguments(base, prompts, tmp_path / "out", None), "--num-prompts", "1", "--lora"]
    message = refused(capsys, [*given, str(tmp_path / "elsewhere.safetensors")])
    assert "1 of 1 layers do not exist" in message and "first down_blocks.9.to_q" in message
    message = refused(capsys, [*given, str(tmp_path / "wide.safetensors")])
    assert "attn1.to_q reads 320 channels there, 32 in" in message
    assert "another model family" in refused(capsys, [*given, str(tmp_path / "control.safetensors")])
    assert "does not fit" in refused(capsys, [*given, str(tmp_path / "tall.safetensors")])


def test_what_is_no_lora_is_refused(
    base: Path,
    prompts: Path,
    run_dir: Path,
    policy: DiffusionPolicy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [*arguments(base, prompts, tmp_path / "out", None), "--lora"]
    assert "no such file or folder" in refused(capsys, [*given, str(tmp_path / "nowhere")])
    assert "no .safetensors file" in refused(capsys, [*given, str(prompts.parent)])
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((run_dir / "lora" / "pytorch_lora_weights.safetensors").read_bytes()[:500])
    assert "not a readable safetensors file" in refused(capsys, [*given, str(broken)])
    assert "give each LoRA once" in refused(capsys, [*given, str(run_dir), "--lora", str(run_dir / "lora")])
    assert not (tmp_path / "out").exists(), "nothing is begun for what cannot be evaluated"


def test_a_lora_that_changes_nothing_is_refused_by_its_file(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both files of an untrained run, before any picture; and one whose change no picture shows, after them."""
    exported_policy(model(base), tmp_path / "untrained", 0.0)
    given = [*arguments(base, prompts, tmp_path / "out", None), "--num-prompts", "1", "--lora"]
    for file in ("pytorch_lora_weights.safetensors", "kohya/untrained.safetensors"):
        path = tmp_path / "untrained" / "lora" / file
        assert f"--lora {path}: changes nothing: every up-projection" in refused(capsys, [*given, str(path)])
    assert not (tmp_path / "out").exists()

    exported_policy(model(base), tmp_path / "faint", 1e-9)
    said = refused(capsys, [*given, str(tmp_path / "faint")])
    assert "faint/lora/pytorch_lora_weights.safetensors: changes nothing: its 1 pictures are exactly the base's" in said
    assert not (tmp_path / "out" / "results.json").exists()


def test_broken_prompts_and_unknown_scorers_are_refused(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "fine"}\n{"prompt": \n')
    given = arguments(base, broken, tmp_path / "out", None)
    assert "broken.jsonl:2: not JSON" in refused(capsys, given)
    given = arguments(base, prompts, tmp_path / "out", None)
    assert "has only 4" in refused(capsys, [*given, "--num-prompts", "5"])
    message = refused(capsys, [*given, "--scorers", "step_awares"])
    assert "--scorers step_awares" in message and "step_aware" in message
    assert "expected key=value" in refused(capsys, [*given, "--scorers", "step_aware:clip"])
    assert "noise.eta" in refused(capsys, [*given, "--eta", "0"])
    assert not (tmp_path / "out").exists()
