"""Settings that only some families have: another autoencoder, no T5, and the sizes that SDXL is told."""

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusion3Pipeline

from configs.model import ModelSection, NoiseSection
from rollout.policy import load_policy
from rollout.sampling import sample_images
from tests.tiny_families import tiny_family


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return tiny_family("sdxl", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory):
    """An autoencoder of other weights that needs no float32, as sdxl-vae-fp16-fix is."""
    folder = tiny_family("sdxl", tmp_path_factory.mktemp("other"), seed=7)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    vae.register_to_config(force_upcast=False)
    vae.save_pretrained(folder / "alone")
    return folder / "alone"


def load(folder, family="sdxl", **settings):
    dtype = settings.pop("dtype", "float32")
    model = ModelSection(family=family, pretrained=str(folder), dtype=dtype, **{"image_size": 32, **settings})
    return load_policy(model, NoiseSection(num_steps=4), "cpu", seed=1)


def test_another_autoencoder_encodes_and_decodes(sdxl, other_vae):
    own, replaced = load(sdxl), load(sdxl, vae=str(other_vae))
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    vae = AutoencoderKL.from_pretrained(other_vae)
    with torch.no_grad():
        theirs = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
        picture = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(4)) * 2 - 1
        encoded = vae.encode(picture).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(replaced.decode(latents), theirs)
    torch.testing.assert_close(replaced.encode_images(picture), encoded)
    assert (own.decode(latents) - theirs).abs().max() > 0.01


def test_an_autoencoder_that_overflows_in_float16_is_kept_in_float32(sdxl, other_vae):
    """SDXL's own says so in its configuration (`force_upcast`); one that does not stays in float16."""
    assert load(sdxl, dtype="float16")._family.vae.dtype == torch.float32
    assert load(sdxl, dtype="float16", vae=str(other_vae))._family.vae.dtype == torch.float16
    assert load(sdxl, dtype="bfloat16")._family.vae.dtype == torch.bfloat16


def test_an_autoencoder_that_is_not_there_is_named(sdxl, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: cannot be read as AutoencoderKL"):
        load(sdxl, vae=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("size", [32, 48])
def test_sdxl_is_told_the_pictures_size_without_a_crop(sdxl, size):
    """(original height, width, crop top, left, target height, width), the same for both halves of guidance."""
    policy, told = load(sdxl, image_size=size), []
    policy.network.register_forward_pre_hook(
        lambda module, inputs, named: told.append(named["added_cond_kwargs"]), with_kwargs=True
    )
    sample_images(policy, ["a red circle"], [11])
    assert len(told) == 4
    assert all(named["time_ids"].tolist() == [[size, size, 0, 0, size, size]] * 2 for named in told)
    assert all(named["text_embeds"].shape == (2, 48) for named in told)


def test_the_sizes_change_sdxls_pictures(sdxl):
    pipeline = DiffusionPipeline.from_pretrained(sdxl)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    options = {"latents": start, "height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    plain = pipeline("a", **options).images
    torch.testing.assert_close(pipeline("a", original_size=(32, 32), target_size=(32, 32), **options).images, plain)
    assert (pipeline("a", original_size=(512, 256), **options).images - plain).abs().max() > 1e-3


def test_without_t5_sd3_draws_what_the_stock_pipeline_without_t5_draws(tmp_path):
    folder = tiny_family("sd3", tmp_path)
    policy = load(folder, "sd3", t5=False)
    object.__setattr__(policy.schedule, "noise_level", 0.0)
    ours = sample_images(policy, ["a red circle"], [11])
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(11))
    theirs = pipeline(
        "a red circle", latents=start, height=32, width=32, num_inference_steps=4, guidance_scale=5.0, output_type="pt"
    ).images
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=1e-3, atol=1e-3)
    with_t5 = load(folder, "sd3")
    object.__setattr__(with_t5.schedule, "noise_level", 0.0)
    assert (sample_images(with_t5, ["a red circle"], [11]) - ours).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart", "flux"])
def test_only_sd3_works_without_t5(tmp_path, family):
    with pytest.raises(ValueError, match=r"model\.t5 = false: only family sd3 works without T5"):
        load(tmp_path, family, t5=False)
