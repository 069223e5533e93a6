"""Checkpoints that are damaged, incomplete or of another family: each an error that names part and weight."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.model import ModelSection, NoiseSection
from rollout.policy import load_policy
from tests.tiny import tiny_pipeline
from tests.tiny_families import tiny_family

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "checkpoint")


def load(folder, family="sd", **settings):
    return load_policy(ModelSection(family=family, pretrained=str(folder), **settings), NoiseSection(), "cpu", seed=0)


def edit(file, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_missing_weights_are_listed_and_never_made_up(folder):
    edit(folder / UNET, lambda weights: [weights.pop(name) for name in ("conv_in.weight", "conv_out.bias")])
    with pytest.raises(ValueError, match=r"checkpoint/unet: 2 weights missing: conv_in\.weight, conv_out\.bias"):
        load(folder)


def test_weights_that_the_model_does_not_have_are_listed(folder):
    edit(folder / UNET, lambda weights: weights.update({"conv_extra.weight": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"checkpoint/unet: 1 weights that this model does not have: conv_extra"):
        load(folder)


def test_text_encoder_and_decoder_are_checked_too(folder):
    name = "vae/diffusion_pytorch_model.safetensors"
    edit(folder / name, lambda weights: weights.pop("decoder.conv_in.weight"))
    with pytest.raises(ValueError, match=r"checkpoint/vae: 1 weights missing: decoder\.conv_in\.weight"):
        load(folder)


def test_a_text_encoders_missing_weight_is_named(folder):
    file = folder / "text_encoder/model.safetensors"
    gone = next(name for name in load_file(file) if name.endswith("final_layer_norm.weight"))
    edit(file, lambda weights: weights.pop(gone))
    with pytest.raises(ValueError, match=r"checkpoint/text_encoder: 1 weights missing: .*final_layer_norm\.weight"):
        load(folder)


def test_a_weight_of_another_shape_is_named(folder):
    edit(folder / UNET, lambda weights: weights.update({"conv_in.weight": torch.zeros(16, 9, 3, 3)}))
    with pytest.raises(ValueError, match=r"checkpoint/unet: cannot be read as UNet2DConditionModel.*conv_in\.weight"):
        load(folder)


def test_a_truncated_file_is_named(folder):
    file = folder / UNET
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"checkpoint/unet: cannot be read as UNet2DConditionModel"):
        load(folder)


def test_another_familys_pipeline_is_named_with_the_setting(good, tmp_path):
    with pytest.raises(ValueError, match=r"holds a StableDiffusionPipeline.*StableDiffusionXLPipeline.*model\.family"):
        load(good, family="sdxl")
    flux = tiny_family("flux", tmp_path / "flux")
    with pytest.raises(ValueError, match=r"holds a FluxPipeline.*reads StableDiffusion3Pipeline"):
        load(flux, family="sd3")


def test_a_place_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no model_index\.json there"):
        load(tmp_path)
    with pytest.raises(ValueError, match="there is no such file or directory"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="there is no such file"):
        load(tmp_path / "nothing.safetensors")


def test_a_damaged_single_file_is_named(good, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read as one file of a StableDiffusionPipe"):
        load(file, config=str(good))


def test_a_tokenizer_that_does_not_fit_is_named(folder):
    file = folder / "tokenizer/tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "model_max_length": 77}))
    with pytest.raises(ValueError, match=r"checkpoint/tokenizer: model_max_length is 77.*reads 16 tokens"):
        load(folder)
    file.write_text(json.dumps(settings))
    vocabulary = json.loads((folder / "tokenizer/vocab.json").read_text())
    larger = {**vocabulary, **{f"extra{n}": len(vocabulary) + n for n in range(8)}}
    (folder / "tokenizer/vocab.json").write_text(json.dumps(larger))
    (folder / "tokenizer/tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"checkpoint/tokenizer: the tokenizer has \d+ tokens and text_encoder has"):
        load(folder)


def test_a_picture_size_that_the_latent_cannot_have_is_refused(good, tmp_path):
    with pytest.raises(ValueError, match=r"model\.image_size = 34 is not a multiple of 4"):
        load(good, image_size=34)
    with pytest.raises(ValueError, match=r"model\.image_size = 36 is not a multiple of 8"):
        load(tiny_family("flux", tmp_path / "flux"), family="flux", image_size=36)
    with pytest.raises(ValueError, match=r"model\.image_size = 36 is not a multiple of 8"):
        load(tiny_family("pixart", tmp_path / "pixart"), family="pixart", image_size=36)
