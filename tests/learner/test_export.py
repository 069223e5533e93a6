"""Exported LoRA files, loaded by stock diffusers, give the pictures of the network that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from configs import AtelierConfig
from configs.learner import BestSection
from configs.load import load_config
from configs.model import LoraSection, ModelSection, NoiseSection
from configs.schema import RunSection
from learner.best import keep_if_best
from learner.export import diffusers_state, export_lora, trained_shapes
from learner.model_card import METHODS, model_card
from learner.objectives import OBJECTIVES
from learner.results import _export_best
from rollout.adapter import adapter_checksum, serialise_adapter
from rollout.eval_result import EvalResult
from rollout.init_lora import FILE_NAME
from rollout.policy import DiffusionPolicy, load_policy
from rollout.versions import AdapterVersion
from tests.tiny import tiny_pipeline

EVERY_KIND = ["to_q", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "time_emb_proj", "conv_in"]
ADAPTERS = {
    "attention, alpha = rank": LoraSection(rank=4),
    "attention, alpha 10, rank 4": LoraSection(rank=4, alpha=10.0),
    "every kind of layer, alpha 1, rank 3": LoraSection(rank=3, alpha=1.0, target_modules=EVERY_KIND),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("base"))


def configuration(base: Path, run_dir: Path, lora: LoraSection) -> AtelierConfig:
    return AtelierConfig(
        run=RunSection(name="taste-1", dir=run_dir), model=ModelSection(pretrained=str(base), lora=lora)
    )


def trained_policy(config: AtelierConfig) -> DiffusionPolicy:
    """A policy whose adapter is far from doing nothing."""
    policy = load_policy(config.model, NoiseSection(), "cpu", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def export(config: AtelierConfig, state: dict[str, Tensor]):
    metrics = {"reward": 20.5, "judge/crisp": 0.25}
    return export_lora(state, config, steps=120, before=metrics, after={"reward": 21.5, "judge/crisp": 0.75})


def stock_pipeline(base: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(base, safety_checker=None)


def picture(pipeline: StableDiffusionPipeline) -> np.ndarray:
    """float32 [1, 32, 32, 3] in [0, 1] from fixed noise."""
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(2))
    return pipeline("a red circle", num_inference_steps=4, guidance_scale=5.0, latents=latents, output_type="np").images


@pytest.mark.parametrize("lora", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_stock_diffusers_with_either_file_gives_the_trained_networks_pictures(
    base: Path, tmp_path: Path, lora: LoraSection
) -> None:
    config = configuration(base, tmp_path / "run", lora)
    policy = trained_policy(config)
    files = export(config, policy.adapter_state())
    trained = stock_pipeline(base)
    trained.unet = policy.network
    wanted = picture(trained)
    assert np.abs(wanted - picture(stock_pipeline(base))).max() > 0.02, "the adapter must matter for this test"

    from_folder, from_kohya = stock_pipeline(base), stock_pipeline(base)
    from_folder.load_lora_weights(str(files.folder))
    from_kohya.load_lora_weights(str(files.kohya.parent), weight_name=files.kohya.name)
    assert np.abs(picture(from_folder) - wanted).max() < 1e-4
    assert np.abs(picture(from_kohya) - wanted).max() < 1e-4
    from_folder.unload_lora_weights()
    assert np.abs(picture(from_folder) - wanted).max() > 0.02


def test_kohya_file_has_the_names_and_metadata_that_its_readers_expect(base: Path, tmp_path: Path) -> None:
    config = configuration(base, tmp_path, LoraSection(rank=2, alpha=8.0))
    state = trained_policy(config).adapter_state()
    files = export(config, state)
    assert files.kohya == tmp_path / "lora" / "kohya" / "taste-1.safetensors"
    weights = load_file(files.kohya)
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert torch.equal(weights[f"{key}.lora_down.weight"], state[f"{layer}.lora_A.weight"])
    assert torch.equal(weights[f"{key}.lora_up.weight"], state[f"{layer}.lora_B.weight"])
    assert weights[f"{key}.alpha"].item() == 8.0 and weights[f"{key}.alpha"].shape == ()
    assert len(weights) == len(state) // 2 * 3
    with safe_open(files.kohya, framework="pt") as opened:
        metadata = opened.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "8.0")
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_incomplete_adapter_is_an_error_that_names_the_layer(base: Path, tmp_path: Path) -> None:
    config = configuration(base, tmp_path, LoraSection(rank=2))
    state = trained_policy(config).adapter_state()
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_B.weight"
    complete = dict(state)

    del state[name]
    with pytest.raises(ValueError, match=f"1 of {len(complete)} tensors missing: {name}"):
        export(config, state)
    with pytest.raises(ValueError, match=r"surplus: mid_block\.other\.lora_A\.weight"):
        export(config, {**complete, "mid_block.other.lora_A.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"{name} has shape \(0,\).*needs \(32, 2\)"):
        export(config, {**complete, name: torch.zeros(0)})
    with pytest.raises(ValueError, match=f"{name} has non-finite"):
        export(config, {**complete, name: torch.full((32, 2), torch.nan)})
    assert not (tmp_path / "lora").exists()


def test_expected_tensors_are_those_of_the_policy(base: Path, tmp_path: Path) -> None:
    config = configuration(base, tmp_path, ADAPTERS["every kind of layer, alpha 1, rank 3"])
    policy = trained_policy(config)
    assert trained_shapes(config.model) == {name: tuple(p.shape) for name, p in policy.trainable_parameters()}


def test_the_model_card_says_what_it_is_and_how_to_use_it(base: Path, tmp_path: Path) -> None:
    config = configuration(base, tmp_path, LoraSection(rank=2, alpha=8.0))
    state = trained_policy(config).adapter_state()
    card = export(config, state).card.read_text()
    front = card.split("---\n")[1]
    assert f"base_model: {json.dumps(str(base))}" in front and "library_name: diffusers" in front
    assert 'load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")' in card
    assert "kohya/taste-1.safetensors" in card
    assert "| judge/crisp | 0.25 | 0.75 | +0.5 |" in card
    assert "| rank, alpha | 2, 8 |" in card
    assert adapter_checksum(state) in card
    python = card.split("```python\n")[1].split("```")[0]
    compile(python, "card", "exec")
    settings = json.loads(card.split("```json\n")[1].split("```")[0])
    assert settings["noise"]["num_steps"] == 20
    assert str(tmp_path / "lora") not in card and "dir" not in settings["run"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "by step-wise preference optimisation (SPO): 7 optimiser steps on pairs of denoising steps that the model "
             "drew itself and a step-aware preference model judged."),
        (["rollout.sampler.block_length=4"], "by multi-step preference optimisation (MSPO): 7 "),
        (["rollout.scorer.clip=/models/PickScore_v1"], "drew itself and a CLIP preference model judged."),
        (["learner.objective.type=ddpo", "rollout.sampler.type=trajectory",
          "rollout.scorer={type: clip_score, clip: /models/clip}"],
         "by DDPO: 7 optimiser steps on whole trajectories that the model drew itself and the scorer `clip_score` "
         "judged."),
        (["learner.objective.type=mapo", "data={type: pairs, path: pairs}"],
         "by MaPO: 7 optimiser steps on preference pairs of a data set."),
        (["learner.objective.type=sft", "data={type: images, path: curated}"],
         "by supervised fine-tuning: 7 optimiser steps on captioned pictures of a data set."),
    ],
)  # fmt: skip
def test_the_card_says_how_it_was_trained(settings: list[str], words: str) -> None:
    config = load_config("quickstart", settings)
    ends = {"reward": 1.0}
    card = model_card(config, adapter_sha256="0", steps=7, before=ends, after=ends, without_kohya=None)
    assert words in card
    online = config.data.type == "online"
    assert ("| sampling |" in card) == ("what the training aimed at" in card) == online
    assert METHODS.keys() == OBJECTIVES.keys()


def test_the_best_weights_are_exported_beside_those_that_were_kept(base: Path, tmp_path: Path) -> None:
    config = configuration(base, tmp_path, LoraSection(rank=2))
    before = EvalResult({"reward": 1.0, "judge/crisp": 0.5}, {}, np.zeros((0, 32, 32, 3), np.uint8), ())
    assert _export_best(config, before) is None
    state = trained_policy(config).adapter_state()
    version = AdapterVersion(step=6, batch=3, attempt=0, sha256=adapter_checksum(state))
    assert keep_if_best(tmp_path, BestSection(metric="reward"), version, serialise_adapter(state), {"reward": 2.0})
    folder = _export_best(config, before)
    assert folder == tmp_path / "best" / "lora" and not (tmp_path / "lora").exists()
    found, wanted = load_file(folder / FILE_NAME), diffusers_state(state, config.model)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    card = (folder / "README.md").read_text()
    assert ": 6 optimiser steps" in card and "| reward | 1 | 2 | +1 |" in card and "| judge/crisp |" not in card
