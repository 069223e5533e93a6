"""One file in its authors' layout: the pictures of the directory it was written from, and nothing lost or left over."""

import pytest
import torch

from configs.model import ModelSection, NoiseSection
from rollout.policy import load_policy
from rollout.sampling import sample_images
from tests.original_layout import write_single_file
from tests.tiny_families import tiny_family

VARIANTS = {"sd": {}, "sd 2.x": {"kind": "2"}, "sdxl": {}, "sd3": {}}
FLUX = pytest.param("flux", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(case) -> family and folder; each is written once."""
    folders = {}

    def folder(case):
        family = case.split()[0]
        if case not in folders:
            variant = {"wide": True} if family == "flux" else VARIANTS[case]
            folders[case] = tiny_family(family, tmp_path_factory.mktemp("pipeline"), **variant)
        return family, folders[case]

    return folder


def same(ours, theirs):
    """Equal weights lie otherwise in memory, which changes a product's last bits."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def load(family, path, folder, **settings):
    options = {"network_only": settings.pop("network_only", False)}
    model = ModelSection(
        family=family, pretrained=str(path), config=str(folder), image_size=32, dtype="float32", **settings
    )
    return load_policy(model, NoiseSection(num_steps=4), "cpu", seed=1, **options)


@pytest.mark.parametrize("case", [*VARIANTS, FLUX])
def test_a_single_file_gives_the_directorys_pictures(written, tmp_path, case):
    family, folder = written(case)
    ours = sample_images(load(family, folder, folder), ["a red circle"], [11])
    file = write_single_file(family, folder, tmp_path / "model.safetensors")
    theirs = sample_images(load(family, file, folder), ["a red circle"], [11])
    assert ours.std() > 0.01
    same(ours, theirs)


@pytest.mark.parametrize("case", ["sd", "sd3"])
def test_a_learner_reads_the_network_alone(written, tmp_path, case):
    family, folder = written(case)
    file = write_single_file(family, folder, tmp_path / "model.safetensors")
    learner, whole = load(family, file, folder, network_only=True), load(family, folder, folder)
    assert learner.latent_shape == whole.latent_shape
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(learner.network.state_dict()[name], tensor), name


SURPLUS = {
    "sd": ["model.diffusion_model.input_blocks.1.0.extra.weight", "first_stage_model.other.weight", "foreign.weight"],
    "sd 2.x": ["cond_stage_model.model.transformer.resblocks.0.extra.weight", "foreign.weight"],
    "sdxl": ["conditioner.embedders.1.model.other.weight", "model.diffusion_model.other.weight"],
    "sd3": ["model.diffusion_model.joint_blocks.0.x_block.ln.weight", "text_encoders.t5xxl.transformer.other.weight"],
}


@pytest.mark.parametrize("case", VARIANTS)
def test_surplus_weights_are_listed(written, tmp_path, case):
    family, folder = written(case)
    added = {name: torch.zeros(3) for name in SURPLUS[case]}
    file = write_single_file(family, folder, tmp_path / "model.safetensors", lambda state: state.update(added))
    with pytest.raises(ValueError, match=rf"model\.safetensors: {len(added)} weights that this .* not have") as caught:
        load(family, file, folder)
    assert all(name in str(caught.value) for name in added)


MISSING = {
    "sd": ("model.diffusion_model.middle_block.0.in_layers.2.weight", "unet: 1 weights missing: mid_block.resnets.0"),
    "sd 2.x": ("cond_stage_model.model.ln_final.weight", "text_encoder: 1 weights missing: .*final_layer_norm.weight"),
    "sdxl": ("first_stage_model.decoder.conv_in.bias", "vae: 1 weights missing: decoder.conv_in.bias"),
    "sd3": (
        "model.diffusion_model.joint_blocks.1.x_block.mlp.fc1.weight",
        "transformer cannot be read as SD3Transformer2DModel: weight missing: joint_blocks.1.x_block.mlp.fc1.weight",
    ),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_missing_weights_are_named_with_their_part(written, tmp_path, case):
    family, folder = written(case)
    gone, words = MISSING[case]
    file = write_single_file(family, folder, tmp_path / "model.safetensors", lambda state: state.pop(gone))
    with pytest.raises(ValueError, match=rf"model\.safetensors: {words}"):
        load(family, file, folder)


def test_t5_can_be_left_out_of_a_file(written, tmp_path):
    family, folder = written("sd3")
    file = write_single_file(family, folder, tmp_path / "model.safetensors")
    ours = sample_images(load(family, folder, folder, t5=False), ["a red circle"], [11])
    same(ours, sample_images(load(family, file, folder, t5=False), ["a red circle"], [11]))


def test_another_autoencoder_takes_the_files_place(written, tmp_path):
    family, folder = written("sdxl")
    other = tiny_family("sdxl", tmp_path / "other", seed=5) / "vae"
    file = write_single_file(family, folder, tmp_path / "model.safetensors")
    ours = sample_images(load(family, folder, folder, vae=str(other)), ["a red circle"], [11])
    same(ours, sample_images(load(family, file, folder, vae=str(other)), ["a red circle"], [11]))
    own = sample_images(load(family, file, folder), ["a red circle"], [11])
    assert (own - ours).abs().max() > 0.05


def test_another_models_configuration_is_named(written, tmp_path):
    family, folder = written("sd")
    file = write_single_file(family, folder, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: \w+( cannot be read as|: \d+ weights missing)"):
        load("sd", file, written("sd 2.x")[1])


def test_a_configuration_that_is_not_there_is_named(written, tmp_path, monkeypatch):
    family, folder = written("sd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file = write_single_file(family, folder, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"configuration and tokenizers, nobody/nothing, are not on this machine"):
        load(family, file, "nobody/nothing")
