"""FLUX under kohya's names: stock diffusers' converter reads the file back and draws our policy's pictures."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
)
from safetensors.torch import save_file

from configs.model import LoraSection, ModelSection, NoiseSection
from learner.kohya import kohya_state, without_kohya
from rollout.families import FAMILIES
from rollout.policy import assemble_policy
from rollout.sampling import sample_images
from tests.tiny_families import tiny_family

EVERY_DOUBLE = [
    f"transformer_blocks.0.{layer}"
    for layer in (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
        "norm1.linear", "norm1_context.linear",
    )
]  # fmt: skip
SINGLE = "single_transformer_blocks.0"
SINGLE_LAYERS = {
    "attn.to_q": (3072, 3072), "attn.to_k": (3072, 3072), "attn.to_v": (3072, 3072), "proj_mlp": (12288, 3072),
    "proj_out": (3072, 15360), "norm.linear": (9216, 3072),
}  # fmt: skip
"""Layer of a single block -> outputs and inputs in FLUX.1."""
CASES = {
    "every layer of a double block": ({}, EVERY_DOUBLE),
    "two of three fused layers": ({}, ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v"]),
    "attention of a single block": ({"wide": True}, ["attn.to_q", "attn.to_k", "attn.to_v"]),
    "every layer of a single block": (
        {"wide": True}, [f"{SINGLE}.{layer}" for layer in SINGLE_LAYERS],
    ),
}  # fmt: skip
"""The converter takes 3072 channels for granted in single blocks: `wide` has them."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """base(wide) -> a tiny FLUX pipeline's folder; written once."""
    folders: dict[bool, Path] = {}

    def folder(wide: bool = False) -> Path:
        if wide not in folders:
            folders[wide] = tiny_family("flux", tmp_path_factory.mktemp("flux"), wide=wide, double=0 if wide else 1)
        return folders[wide]

    return folder


def stock_picture(folder, dtype, lora=None):
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    start = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(11))
    images = pipeline(
        "a red circle", latents=pipeline._pack_latents(start, 1, 16, 8, 8).to(dtype), height=32, width=32,
        num_inference_steps=3, guidance_scale=5.0, output_type="pt",
    ).images  # fmt: skip
    return images.float() * 2 - 1


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.slow] * bool(case[0])) for name, case in CASES.items()]
)
def test_stock_diffusers_reads_the_file_back(base, tmp_path, case):
    variant, layers = case
    folder = base(**variant)
    lora = LoraSection(rank=4, alpha=6.0, target_modules=layers)
    model = ModelSection(family="flux", pretrained=str(folder), image_size=32, lora=lora)
    family = FAMILIES["flux"].load(str(folder), torch.float32, network_only=False, model=model)
    policy = assemble_policy(family, model, NoiseSection(num_steps=3), torch.device("cpu"), seed=0)
    object.__setattr__(policy.schedule, "noise_level", 0.0)
    untrained = sample_images(policy, ["a red circle"], [11])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            if "lora_B" in name:
                spread = 0.2 if variant else 1.0
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    ours = sample_images(policy, ["a red circle"], [11])
    assert (ours - untrained).abs().max() > 0.02, "the adapter must matter for this test"
    file = tmp_path / "taste.safetensors"
    save_file(kohya_state(policy.adapter_state(), model), file)
    torch.testing.assert_close(stock_picture(folder, torch.float32, file), ours, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("layers", [("attn.to_q", "attn.to_k", "attn.to_v"), tuple(SINGLE_LAYERS)])
def test_diffusers_converter_gives_each_single_block_layer_its_own_change(layers):
    """What each layer adds to a vector x: (alpha / rank) B A x, before and after."""
    generator = torch.Generator().manual_seed(2)
    model = ModelSection(family="flux", lora=LoraSection(rank=4, alpha=2.0))
    state = {}
    for layer in layers:
        height, width = SINGLE_LAYERS[layer]
        state[f"{SINGLE}.{layer}.lora_A.weight"] = torch.randn((4, width), generator=generator)
        state[f"{SINGLE}.{layer}.lora_B.weight"] = torch.randn((height, 4), generator=generator)
    back = FluxPipeline.lora_state_dict(kohya_state(state, model))
    for layer, (height, width) in SINGLE_LAYERS.items():
        x, name = torch.randn(width, generator=generator), f"transformer.{SINGLE}.{layer}"
        if layer in layers:
            wanted = 0.5 * state[f"{SINGLE}.{layer}.lora_B.weight"] @ (state[f"{SINGLE}.{layer}.lora_A.weight"] @ x)
        elif f"{name}.lora_B.weight" in back:
            wanted = torch.zeros(height)
        else:
            continue
        found = back[f"{name}.lora_B.weight"] @ (back[f"{name}.lora_A.weight"] @ x)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_fused_layers_keep_their_parts_apart():
    """q [2, 3], v [2, 3] of rank 1 with alpha 3: down is both, up is block-diagonal with k's rows zero, alpha 6."""
    layer = "transformer_blocks.7.attn"
    state = {
        f"{layer}.to_q.lora_A.weight": torch.tensor([[1.0, 2, 3]]),
        f"{layer}.to_q.lora_B.weight": torch.tensor([[4.0], [5]]),
        f"{layer}.to_v.lora_A.weight": torch.tensor([[6.0, 7, 8]]),
        f"{layer}.to_v.lora_B.weight": torch.tensor([[9.0], [10]]),
    }
    model = ModelSection(family="flux", lora=LoraSection(rank=1, alpha=3.0))
    found = kohya_state(state, model)
    name = "lora_unet_double_blocks_7_img_attn_qkv"
    assert found.keys() == {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"}
    assert found[f"{name}.lora_down.weight"].tolist() == [[1, 2, 3], [6, 7, 8]]
    assert found[f"{name}.lora_up.weight"].tolist() == [[4, 0], [5, 0], [0, 0], [0, 0], [0, 9], [0, 10]]
    assert found[f"{name}.alpha"].item() == 6


def test_what_has_no_kohya_file_says_why():
    """The stock loaders themselves: SD3's leaves kohya's names as they are, PixArt's pipelines have none."""
    assert without_kohya(["transformer_blocks.0.attn.to_q"], "flux") is None
    reason = without_kohya(["proj_out", "transformer_blocks.0.attn.to_q", "x_embedder"], "flux")
    assert reason == "diffusers' converter reads no adapter of proj_out under kohya's names (2 such)"
    with pytest.raises(ValueError, match="diffusers has no converter for kohya's names of sd3"):
        kohya_state({}, ModelSection(family="sd3"))
    names = {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": torch.ones(1, 1)}
    assert StableDiffusion3Pipeline.lora_state_dict(names).keys() == names.keys()
    assert not any(hasattr(kind, "load_lora_weights") for kind in (PixArtAlphaPipeline, PixArtSigmaPipeline))
