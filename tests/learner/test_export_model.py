"""A wholly trained network's export: a pipeline that stock diffusers loads, and that draws the policy's pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

from configs import AtelierConfig
from configs.model import NoiseSection
from learner.export import trained_shapes
from learner.export_model import export_model
from rollout.adapter import adapter_checksum
from rollout.evaluate import main as evaluate
from rollout.evaluator import to_uint8
from rollout.policy import DiffusionPolicy, load_policy
from rollout.sampling import sample_images
from tests.tiny import tiny_pipeline
from tests.tiny_families import tiny_family

METRICS = {"reward": 20.5}


def configuration(base, run_dir, family="sd"):
    model = {"family": family, "pretrained": str(base), "trainable": "full"}
    return AtelierConfig.model_validate({"run": {"name": "taste-1", "dir": str(run_dir)}, "model": model})


def trained_policy(config: AtelierConfig, noise: NoiseSection) -> DiffusionPolicy:
    policy = load_policy(config.model, noise, "cpu", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Policy, its export, and the run's directory. The base is stored in float16."""
    folder = tmp_path_factory.mktemp("export")
    base = tiny_pipeline(folder / "base")
    DiffusionPipeline.from_pretrained(base, dtype=torch.float16).save_pretrained(base)
    config = configuration(base, folder / "run")
    policy = trained_policy(config, NoiseSection())
    for _ in range(2):  # an export takes the place of a former one
        place = export_model(policy.adapter_state(), config, steps=120, before=METRICS, after={"reward": 21.5})
    return policy, place, config


def test_stock_diffusers_draws_the_policys_pictures(exported):
    policy, place, config = exported
    pipeline = DiffusionPipeline.from_pretrained(place)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    ours = sample_images(policy, ["a red circle"], [11])
    generator = torch.Generator().manual_seed(11)
    start = torch.randn((1, 4, 8, 8), generator=generator)
    theirs = pipeline(
        "a red circle", latents=start, generator=[generator], eta=1.0, num_inference_steps=20, guidance_scale=5.0,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=1e-3, atol=1e-3)
    with policy.reference():
        assert (sample_images(policy, ["a red circle"], [11]) - ours).abs().max() > 0.1, "training must matter here"
    assert sorted(path.name for path in config.run.path.iterdir()) == ["model"], "nothing half-written"


def test_the_trained_weights_are_stored_exactly_and_nothing_else_changed(exported):
    policy, place, config = exported
    assert trained_shapes(config.model) == {name: tuple(p.shape) for name, p in policy.trainable_parameters()}
    pipeline, base = (DiffusionPipeline.from_pretrained(folder) for folder in (place, config.model.pretrained))
    state = pipeline.unet.state_dict()
    assert all(torch.equal(state[name], value) for name, value in policy.adapter_state().items())
    for part in ("vae", "text_encoder"):
        wanted = getattr(base, part).state_dict()
        for name, value in getattr(pipeline, part).state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, wanted[name].float()), name


def test_every_file_has_the_permissions_of_any_new_file(exported):
    _, place, config = exported
    (config.run.path / "new").touch()
    permissions = (config.run.path / "new").stat().st_mode
    assert {file.stat().st_mode for file in place.rglob("*") if file.is_file()} == {permissions}


def test_the_card_says_what_it_is_and_how_to_load_it(exported):
    policy, place, _ = exported
    card = (place / "README.md").read_text()
    assert adapter_checksum(policy.adapter_state()) in card and "every weight of its network" in card
    assert 'StableDiffusionPipeline.from_pretrained(".")' in card and "full-fine-tuning" in card
    assert "lora" not in card.split("<details>")[0].lower()
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")
    assert json.loads(card.split("```json\n")[1].split("```")[0])["model"]["trainable"] == "full"


def test_the_evaluation_command_takes_it_as_a_base(exported, tmp_path, capsys):
    policy, place, _ = exported
    (tmp_path / "prompts.txt").write_text("a red disc\na blue ring\n")
    arguments = ["--prompts", str(tmp_path / "prompts.txt"), "--scorers", "--steps", "3", "--seed", "20"]
    assert evaluate(["--base", str(place), "--out", str(tmp_path / "out"), *arguments]) == 0, capsys.readouterr().err
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out/images/base").glob("*.png"))]
    few = load_policy(configuration(place, tmp_path).model, NoiseSection(num_steps=3), "cpu", seed=0)
    assert adapter_checksum(few.adapter_state()) == adapter_checksum(policy.adapter_state())
    wanted = to_uint8(sample_images(few, ["a red disc", "a blue ring"], [20, 21]))
    assert np.abs(np.stack(drawn).astype(int) - wanted.astype(int)).max() <= 1


def test_what_is_not_the_whole_network_is_refused_by_name(exported):
    policy, _, config = exported
    state = policy.adapter_state()
    with pytest.raises(ValueError, match=rf"network of .*: 1 of {len(state)} tensors missing: conv_in\.bias"):
        export_model({k: v for k, v in state.items() if k != "conv_in.bias"}, config, steps=1, before={}, after={})
    with pytest.raises(ValueError, match=r"network tensor conv_in\.bias has non-finite values"):
        bad = {**state, "conv_in.bias": torch.full((16,), torch.nan)}
        export_model(bad, config, steps=1, before={}, after={})


@pytest.mark.parametrize("family", ["sdxl", "pixart", "sd3", "flux"])
def test_every_family_comes_back_as_it_was_trained(family, tmp_path):
    config = configuration(tiny_family(family, tmp_path / "base"), tmp_path / "run", family)
    noise = NoiseSection(num_steps=2)
    policy = trained_policy(config, noise)
    place = export_model(policy.adapter_state(), config, steps=1, before=METRICS, after=METRICS)
    again = load_policy(configuration(place, tmp_path, family).model, noise, "cpu", seed=0)
    assert adapter_checksum(again.adapter_state()) == adapter_checksum(policy.adapter_state())
    torch.testing.assert_close(sample_images(again, ["a disc"], [3]), sample_images(policy, ["a disc"], [3]))
