"""What the network is given in bfloat16: tensor for tensor what the stock pipeline gives it at the first step.

Pictures agree only to tolerance; here the order of guidance's halves, SDXL's sizes and pooled states, FLUX's packing,
ids and guidance and every dtype are compared exactly, and the time that it is told at every step.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline

from configs.model import ModelSection, NoiseSection
from rollout.policy import load_policy
from tests.tiny_families import tiny_family

VARIANTS = {
    "sd": {},
    "sd 2.x": {"kind": "2"},
    "sdxl": {},
    "sdxl, no zeros": {"zeros": False},
    "pixart": {},
    "pixart alpha 1024": {"kind": "alpha", "sized": True},
    "sd3": {},
    "flux": {},
    "flux schnell": {"guidance": False},
}
STEPS, BFLOAT16 = 4, torch.bfloat16  # the second of 4 steps of FLUX tells apart what is rounded first


def calls(network, run):
    """Of every call of the network its tensors by name; PixArt and U-Nets read latents and time in first places."""
    found = []

    def record(module, given, named):
        named = {**{("hidden_states", "timestep")[n]: value for n, value in enumerate(given)}, **named}
        named |= named.pop("added_cond_kwargs", None) or {}
        found.append({name: value for name, value in named.items() if isinstance(value, torch.Tensor)})

    handle = network.register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        run()
    handle.remove()
    return found


@pytest.mark.parametrize("case", VARIANTS)
def test_the_network_is_given_what_the_stock_pipeline_gives_it(case, tmp_path):
    family = case.split()[0].rstrip(",")
    folder = tiny_family(family, tmp_path, **VARIANTS[case])
    model = ModelSection(family=family, pretrained=str(folder), image_size=32, dtype="bfloat16")
    policy = load_policy(model, NoiseSection(num_steps=STEPS), "cpu", seed=1)
    start = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(3))
    prompts = ["a red circle", "a blue square"]
    conditioning = policy.encode(prompts)
    steps = policy.schedule.timesteps
    ours = calls(policy.network, lambda: [policy.predict(start, t.repeat(2), conditioning) for t in steps])

    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=BFLOAT16)
    pipeline.set_progress_bar_config(disable=True)
    options = {"clean_caption": False, "use_resolution_binning": False} if family == "pixart" else {}
    latents = start.to(BFLOAT16)
    if family == "flux":
        latents = pipeline._pack_latents(latents, 2, 16, 8, 8)
    network = pipeline.unet if family in ("sd", "sdxl") else pipeline.transformer
    theirs = calls(
        network,
        lambda: pipeline(
            prompts, latents=latents, height=32, width=32, num_inference_steps=STEPS, guidance_scale=5.0,
            output_type="latent", **options,
        ),
    )  # fmt: skip
    assert len(ours) == len(theirs) == STEPS
    for mine, wanted in zip(ours, theirs, strict=True):  # a scalar for all rows there
        time = wanted["timestep"].double().expand(len(mine["timestep"]))
        torch.testing.assert_close(mine["timestep"].double(), time, rtol=0, atol=0)

    first, wanted = ours[0], theirs[0]
    assert {"hidden_states", "encoder_hidden_states"} <= wanted.keys() == first.keys()
    for name in wanted.keys() - {"timestep"}:
        if name == "encoder_attention_mask":  # whole numbers there
            assert torch.equal(first[name], wanted[name].to(BFLOAT16))
        elif name == "guidance":  # a single number there
            assert first[name].dtype == wanted[name].dtype and set(first[name].tolist()) == set(wanted[name].tolist())
        else:
            assert first[name].dtype == wanted[name].dtype, name
            assert torch.equal(first[name], wanted[name]), name
