"""Every family in its real layout: the stock pipeline's pictures, step-wise rollouts, the learner's log-probability."""

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from configs.model import ModelSection, NoiseSection
from configs.rollout import StepwiseSampler as Settings
from rollout.policy import load_policy
from rollout.prompts import PromptItem
from rollout.sampling import sample_images, sample_latents
from rollout.stepwise import StepwiseSampler
from tests.fakes import RedScorer
from tests.parity import learner_log_probs
from tests.tiny_families import tiny_family

VARIANTS = {
    "sd": {},
    "sd v-prediction": {"prediction_type": "v_prediction"},
    "sd 2.x": {"kind": "2"},
    "sdxl": {},
    "pixart": {},
    "pixart alpha": {"kind": "alpha"},
    "pixart alpha 1024": {"kind": "alpha", "sized": True},
    "sd3": {},
    "flux": {},
    "flux schnell": {"guidance": False},
}
PROMPT = "a red circle"


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory):
    family = request.param.split()[0]
    folder = tiny_family(family, tmp_path_factory.mktemp("pipeline"), **VARIANTS[request.param])
    model = ModelSection(family=family, pretrained=str(folder), image_size=32)
    return family, folder, model


def stock(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_picture(family, folder, steps, **options):
    """The stock pipeline's, from the noise that our sampler draws for seed 11. Flow families draw none after it."""
    generator, flow = torch.Generator().manual_seed(11), family in ("sd3", "flux")
    start = torch.randn((1, 16 if flow else 4, 8, 8), generator=generator)
    pipeline = stock(folder)
    if not flow:
        options |= {"eta": 1.0, "generator": [generator]}
    if family == "pixart":
        options |= {"clean_caption": False, "use_resolution_binning": False}
    if family == "flux":
        start = pipeline._pack_latents(start, 1, 16, 8, 8)
    return pipeline(
        PROMPT, latents=start, height=32, width=32, num_inference_steps=steps, guidance_scale=5.0, output_type="pt",
        **options,
    ).images  # fmt: skip


def our_picture(model, steps, **noise):
    """Flow families without noise: the stock sampler is an ODE."""
    policy = load_policy(model, NoiseSection(num_steps=steps, **noise), "cpu", seed=1)
    if model.family in ("sd3", "flux"):
        object.__setattr__(policy.schedule, "noise_level", 0.0)
    return sample_images(policy, [PROMPT], [11]) / 2 + 0.5


def test_pictures_are_the_stock_pipelines(case):
    family, folder, model = case
    steps = 6 if family in ("sd3", "flux") else 20
    theirs = stock_picture(family, folder, steps)
    assert theirs.std() > 0.01
    torch.testing.assert_close(our_picture(model, steps), theirs, rtol=1e-3, atol=1e-3)


def test_a_negative_prompt_is_the_stock_pipelines(case):
    """Pushed away from, in every encoder and pooled state; FLUX has none and says so."""
    family, folder, model = case
    if family == "flux":
        with pytest.raises(ValueError, match=r"noise\.negative_prompt = 'a blue square': FLUX has no negative prompt"):
            our_picture(model, 5, negative_prompt="a blue square")
        return
    ours = our_picture(model, 5, negative_prompt="a blue square")
    theirs = stock_picture(family, folder, 5, negative_prompt="a blue square")
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert (ours - our_picture(model, 5)).abs().max() > 0.005, "it must matter for this test"


def randomised(model, noise=None, **options):
    policy = load_policy(model, noise or NoiseSection(num_steps=6), "cpu", seed=1, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("block_length", [1, 3])
def test_the_learner_recomputes_the_samplers_log_probabilities(case, block_length):
    _, _, model = case
    noise = NoiseSection(num_steps=5)
    policy = randomised(model, noise)
    sampler = StepwiseSampler(policy, RedScorer(), Settings(threshold=0.0, block_length=block_length, num_candidates=2))
    items = [PromptItem(0, "a", 100), PromptItem(1, "bb", 101)]
    groups = sampler.sample(items, policy_step=0, adapter_sha256="f" * 64, worker="w")
    learner = randomised(model, noise, network_only=True)
    for group in groups:
        assert group.num_pairs >= 2 and set(group.timestep.tolist()) <= set(policy.schedule.trained_timesteps.tolist())
        win, lose = learner_log_probs(learner, group)
        torch.testing.assert_close(win, group.behaviour_logp_win, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(lose, group.behaviour_logp_lose, rtol=1e-6, atol=1e-6)


def test_sampling_in_parts_and_by_row_is_the_same(case):
    _, _, model = case
    policy = randomised(model, NoiseSection(num_steps=4))
    conditioning = policy.encode(["a", "bb"])
    both = sample_latents(policy, conditioning, [1, 2])
    alone = sample_latents(policy, conditioning.rows(slice(1, 2)), [2])
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_inherited_scheduler_settings_change_nothing(case):
    """A DDIM-like checkpoint may ship an Euler scheduler with another spacing: only its noise table is read."""
    family, folder, model = case
    if family in ("sd3", "flux"):
        policy = load_policy(model, NoiseSection(num_steps=6), "cpu", seed=1, network_only=True)
        pipeline = stock(folder)
        shift = {"mu": 0.5 + (1.15 - 0.5) / (4096 - 256) * (16 - 256)} if family == "flux" else {}
        sigmas = {"sigmas": torch.linspace(1, 1 / 6, 6).tolist()} if family == "flux" else {}
        pipeline.scheduler.set_timesteps(6, **shift, **sigmas)
        torch.testing.assert_close(policy.schedule.sigmas, pipeline.scheduler.sigmas)
        return
    policy = load_policy(model, NoiseSection(), "cpu", seed=1, network_only=True)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert policy.schedule.timesteps.tolist() == list(range(951, 0, -50))
    assert policy.schedule.prediction_type == scheduler.config.prediction_type
    torch.testing.assert_close(policy.schedule.alphas_cumprod, scheduler.alphas_cumprod)
