"""As on a GPU, without one: tensors that have a device and a type but no data, where mixing two devices is an error.

Weights are bfloat16 with a float32 adapter on `cuda`, what comes from groups is on the CPU, as in a run. Values are not
looked at, nor is anything that depends on them; a backward pass needs a real device.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.model import ModelSection, NoiseSection
from learner.batching import collate
from learner.objectives import OBJECTIVES
from learner.readers import Setting, build_reader
from learner.readers.final_latents import FinalBatch
from learner.readers.trajectories import TrajectoryBatch
from reward import MINIATURE
from reward.step_aware import StepAwarePreferenceModel
from rollout.conditioning import Conditioning
from rollout.decoder import PixelDecoder
from rollout.families import FAMILIES
from rollout.policy import DiffusionPolicy, load_policy
from rollout.transition import log_prob, transition
from tests.learner.inprocess import small_config
from tests.tiny import make_group
from tests.tiny_families import tiny_family

CARD = torch.device("cuda", 0)


@pytest.fixture
def no_data():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def on_the_card(module):
    """The same module with weights that have no data."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=CARD)
                part._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CARD)
    return module


def policy_on_the_card(family, folder, mode, **settings):
    """A policy whose every part is there, and one prompt's conditioning, still on the CPU."""
    with torch.utils._python_dispatch._disable_current_modes():
        model = ModelSection(
            family=family, pretrained=str(tiny_family(family, folder)), image_size=32, dtype="bfloat16", **settings
        )
        policy = load_policy(model, NoiseSection(num_steps=4), "cpu", seed=1)
        conditioning = policy.encode(["a red circle"])
    on_the_card(policy.network)
    on_the_card(policy._family.vae)
    table = torch.empty(policy.schedule.alphas_cumprod.shape, device=CARD)
    schedule = replace(policy.schedule, alphas_cumprod=table)
    policy = DiffusionPolicy(policy._family, schedule, policy._noise, policy.latent_shape)
    return policy, Conditioning({name: mode.from_tensor(value) for name, value in conditioning.tensors.items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_predicts_decodes_and_encodes_where_its_weights_are(family, tmp_path, no_data):
    policy, conditioning = policy_on_the_card(family, tmp_path, no_data)
    assert policy.device == CARD and policy.network.dtype == torch.bfloat16
    x = torch.empty(3, *policy.latent_shape, device=CARD)
    t = torch.full((3,), 500.0, device=CARD) if family in ("sd3", "flux") else torch.full((3,), 500, device=CARD)
    output = policy._family.forward(policy.network, x, t, conditioning.repeat(3), 5.0)
    assert output.device == CARD and output.dtype == torch.float32 and output.shape == x.shape
    assert output.requires_grad and all(p.dtype == torch.float32 for _, p in policy.trainable_parameters())
    pictures = policy.decode(x)
    assert pictures.device == CARD and pictures.dtype == torch.float32
    assert policy.encode_images(pictures).shape == x.shape
    assert policy.encode_images(torch.empty(1, 3, 32, 32)).device == CARD, "pictures of a data set come from the CPU"


def test_a_step_has_its_log_probability_on_the_card(tmp_path, no_data):
    policy, conditioning = policy_on_the_card("sd", tmp_path, no_data)
    x, t = torch.empty(3, *policy.latent_shape, device=CARD), torch.full((3,), 501, device=CARD)
    with policy.reference():
        move = transition(policy.schedule, policy.predict(x, t, conditioning.repeat(3)), x, t)
    assert log_prob(move.sample(torch.randn_like(x)), move.mean, move.std).device == CARD


def reader(policy, folder, objective, decoder=None, **more):
    with torch.utils._python_dispatch._disable_current_modes():
        kind = {"spo": "stepwise", "d3po": "trajectory", "ddpo": "trajectory"}.get(objective["type"], "final_pairs")
        config = small_config(folder, folder, objective=objective, sampler={"type": kind}, **more)
    return build_reader(Setting(policy, config.learner, seed=0, decoder=decoder))


@pytest.mark.parametrize("pixel", [None, {"weight": 1.0}])
def test_step_pairs_are_read_on_the_card(tmp_path, no_data, pixel):
    policy, _ = policy_on_the_card("sd", tmp_path / "sd", no_data)
    decoder = None if pixel is None else PixelDecoder(policy._family.vae)
    read = reader(policy, tmp_path, {"type": "spo", **({} if pixel is None else {"pixel": pixel})}, decoder)
    with torch.utils._python_dispatch._disable_current_modes():
        group = make_group(0, pairs=3)
    batch = collate([group], [(0, 0), (0, 2)], CARD, 1)
    found = read.evaluate(batch, policy.network)
    assert found.losses.device == CARD and found.losses.requires_grad


@pytest.mark.parametrize("kind", [name for name in OBJECTIVES if name not in ("spo", "d3po")])
def test_other_objectives_are_read_on_the_card(kind, tmp_path, no_data):
    policy, conditioning = policy_on_the_card("sd", tmp_path / "sd", no_data)
    objective = {"type": kind, **({"reduction": "mean"} if kind in ("simpo", "sft") else {})}
    read = reader(policy, tmp_path, objective)
    x, row, t = torch.empty(2, *policy.latent_shape, device=CARD), torch.empty(2, device=CARD), torch.full((2,), 501)
    shared = {"timestep": t.to(CARD), "conditioning": conditioning.repeat(2).to(CARD), "weight": row}
    if kind == "ddpo":
        batch = TrajectoryBatch(x_t=x, x_prev=x, behaviour_logp=row, advantage=row, sources=("a", "b"), **shared)
    else:
        batch = FinalBatch(z=torch.stack([x] * (1 if kind == "sft" else 2)), noise=x, sources=("a", "b"), **shared)
    found = read.evaluate(batch, policy.network)
    assert found.losses.device == CARD and found.losses.requires_grad


def test_the_preference_model_scores_where_its_weights_are(no_data):
    with torch.utils._python_dispatch._disable_current_modes():
        model = StepAwarePreferenceModel.from_pretrained(MINIATURE, MINIATURE / "step_aware.safetensors")
    on_the_card(model)
    pictures, ids = torch.empty(2, 3, 96, 64, device=CARD), torch.zeros(2, 16, dtype=torch.int64, device=CARD)
    scores = model.score(pictures, ids, torch.full((2,), 501, device=CARD))
    assert scores.device == CARD and scores.dtype == torch.float32
