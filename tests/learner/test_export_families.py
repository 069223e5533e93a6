"""Every family's exported adapter, loaded by stock tools, gives the pictures of our own policy."""

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel

from configs import AtelierConfig
from configs.model import LoraSection, ModelSection, NoiseSection
from configs.schema import RunSection
from learner.export import export_lora, trained_shapes
from rollout.policy import load_policy
from rollout.sampling import sample_images
from tests.tiny_families import tiny_family


@pytest.fixture(scope="module", params=["sdxl", "pixart", "sd3", "flux", "sd 2.x"])
def exported(request, tmp_path_factory):
    """Family, folder, files, and our policy's picture and the base's, from the same start."""
    family, folder = request.param.split()[0], tmp_path_factory.mktemp("base")
    tiny_family(family, folder, **({"kind": "2"} if family == "sd" else {}))
    lora = LoraSection(rank=2, alpha=6.0)
    model = ModelSection(family=family, pretrained=str(folder), image_size=32, lora=lora)
    config = AtelierConfig(run=RunSection(name="taste-1", dir=tmp_path_factory.mktemp("run")), model=model)
    policy = load_policy(model, NoiseSection(num_steps=5), "cpu", seed=0)
    if family in ("sd3", "flux"):
        object.__setattr__(policy.schedule, "noise_level", 0.0)
    base = sample_images(policy, ["a red circle"], [11])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            if "lora_B" in name:
                spread = 0.1 if family == "sd" else 0.3  # v-prediction amplifies the last bits of a large change
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    assert trained_shapes(model) == {name: tuple(p.shape) for name, p in policy.trainable_parameters()}
    metrics = {"reward": 1.0}
    files = export_lora(policy.adapter_state(), config, steps=1, before=metrics, after=metrics)
    return family, folder, files, sample_images(policy, ["a red circle"], [11]), base


def picture(family, folder, load):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    load(pipeline)
    channels = 16 if family in ("sd3", "flux") else 4
    generator = torch.Generator().manual_seed(11)
    start = torch.randn((1, channels, 8, 8), generator=generator)
    options = {} if channels == 16 else {"eta": 1.0, "generator": [generator]}
    if family == "pixart":
        options |= {"clean_caption": False, "use_resolution_binning": False}
    if family == "flux":
        start = pipeline._pack_latents(start, 1, 16, 8, 8)
    images = pipeline(
        "a red circle", latents=start, height=32, width=32, num_inference_steps=5, guidance_scale=5.0, output_type="pt",
        **options,
    ).images  # fmt: skip
    return images * 2 - 1


def test_stock_tools_give_our_policys_pictures(exported):
    family, folder, files, ours, base = exported
    assert (ours - base).abs().max() > 0.02, "the adapter must matter for this test"

    def by_diffusers(pipeline):
        pipeline.load_lora_weights(str(files.folder))

    def by_peft(pipeline):
        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, str(files.peft))

    theirs = picture(family, folder, by_peft if family == "pixart" else by_diffusers)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=2e-3)
    compile(files.card.read_text().split("```python\n")[1].split("```")[0], "card", "exec")


def test_kohya_names_load_back_where_diffusers_has_a_converter(exported):
    """FLUX has one too, for its real width alone: tests/learner/test_kohya.py."""
    family, folder, files, ours, _ = exported
    if family in ("pixart", "sd3"):
        assert files.kohya is None and not (files.folder / "kohya").exists()
        return
    if family == "flux":
        assert files.kohya is not None
        return
    theirs = picture(
        family, folder, lambda p: p.load_lora_weights(str(files.kohya.parent), weight_name=files.kohya.name)
    )
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=2e-3)
