"""The pixel term through a small real decoder, in float64: numbers, finite differences, switches."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from learner.objectives import dpo_loss, sft_loss, simpo_loss, spo_loss
from learner.objectives.pixel import combine, implied_x0, latents_to_decode, pixel_log_density, squared_error
from rollout.decoder import PixelDecoder
from rollout.transition import NoiseSchedule, transition
from tests.tiny import tiny_pipeline

ALPHA = torch.tensor([0.64, 0.36], dtype=torch.float64).reshape(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return AutoencoderKL.from_pretrained(tiny_pipeline(tmp_path_factory.mktemp("vae")), subfolder="vae").double()


@pytest.fixture(scope="module")
def decoder(vae):
    return PixelDecoder(vae)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_squared_errors_by_hand():
    target, prediction = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [3.0, 4.0]])
    assert squared_error(target, prediction, "sum").tolist() == [5.0, 25.0]
    assert squared_error(target, prediction, "mean").tolist() == [2.5, 12.5]


def test_what_is_decoded_by_hand():
    """a = 0.64: sqrt a = 0.8, sqrt(1 - a) = 0.6. z = 1, eps = 0.5, predicted 1: present 0.8 + 0.3 and 0.8 + 0.6;
    x0 1 and 1 + 0.75 (0.5 - 1) = 0.625."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    target, prediction = latents_to_decode(one, 0.5 * one, one, ALPHA[:1], "present")
    assert (target.item(), prediction.item()) == (pytest.approx(1.1), pytest.approx(1.4))
    target, prediction = latents_to_decode(one, 0.5 * one, one, ALPHA[:1], "x0")
    assert (target.item(), prediction.item()) == (1.0, pytest.approx(0.625))


def test_total_of_both_terms_by_hand():
    assert combine(torch.tensor(2.0), torch.tensor(0.5), weight=8.0, latent_weight=1.0).item() == 6.0
    assert combine(torch.tensor(2.0), torch.tensor(0.5), weight=8.0, latent_weight=0.0).item() == 4.0


def test_the_decoder_is_the_autoencoder_s_own_and_stays_frozen(vae, decoder):
    latents = noise(3, 4, 4, 4).requires_grad_()
    pictures = decoder.decode(latents)
    expected = vae.decode(latents.detach() / vae.config.scaling_factor, return_dict=False)[0]
    torch.testing.assert_close(pictures.detach(), expected, rtol=0, atol=1e-12)
    pictures.sum().backward()
    assert latents.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_each_picture_is_decoded_by_itself(vae, decoder, monkeypatch):
    sizes = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, **more: sizes.append(len(z)) or decode(z, **more))
    decoder.decode(noise(3, 4, 2, 2).requires_grad_()).sum().backward()
    assert sizes == [1] * 6, "three forward, three recomputed in the backward pass"


TERMS = {"latent only": (0.0, 1.0), "pixel only": (8.0, 0.0), "both": (8.0, 1.0)}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("reference", [True, False], ids=["with reference", "without"])
@pytest.mark.parametrize("decode", ["present", "x0"])
def test_preference_gradients_through_the_decoder_against_differences(decoder, term, reference, decode):
    weight, latent_weight = TERMS[term]
    z, eps, ref = noise(2, 4, 2, 2, seed=1), noise(1, 4, 2, 2, seed=2).repeat(2, 1, 1, 1), noise(2, 4, 2, 2, seed=3)

    def errors(predicted):
        target, prediction = latents_to_decode(z, eps, predicted, ALPHA, decode)
        pixel = squared_error(decoder.decode(target), decoder.decode(prediction), "mean")
        return squared_error(eps, predicted, "mean").chunk(2), pixel.chunk(2)

    def total(predicted):
        terms = []
        for mine, base in zip(errors(predicted), errors(ref), strict=True):
            loss = dpo_loss(*mine, *base, beta=2.0) if reference else simpo_loss(*mine, beta=1.0)
            terms.append(loss[0])
        return combine(*terms, weight=weight, latent_weight=latent_weight).sum()

    assert_gradient_by_differences(total, eps + 0.3 * noise(2, 4, 2, 2, seed=4))


@pytest.mark.parametrize("decode", ["present", "x0"])
def test_supervised_gradients_through_the_decoder_against_differences(decoder, decode):
    z, eps = noise(2, 4, 2, 2, seed=1), noise(2, 4, 2, 2, seed=2)

    def total(predicted):
        target, prediction = latents_to_decode(z, eps, predicted, ALPHA, decode)
        pixel = squared_error(decoder.decode(target), decoder.decode(prediction), "sum")
        latent, pixel = sft_loss(squared_error(eps, predicted, "sum"))[0], sft_loss(pixel)[0]
        return combine(latent, pixel, weight=8.0, latent_weight=1.0).sum()

    assert_gradient_by_differences(total, eps + 0.3 * noise(2, 4, 2, 2, seed=4))


@pytest.mark.parametrize("decode", ["present", "x0"])
@pytest.mark.parametrize("latent_weight", [0.0, 1.0], ids=["pixel only", "both"])
def test_step_wise_gradients_through_the_decoder_against_differences(decoder, decode, latent_weight):
    """SPO's pair: both halves leave one x_t and share one mean; ratios stay inside the clip range."""
    schedule = NoiseSchedule(torch.linspace(0.999, 0.01, 1000).double(), torch.tensor([951, 901]), 50, "epsilon", 1.0)
    t = torch.tensor([601])
    alpha, alpha_prev = (schedule.alphas_cumprod[at].reshape(-1, 1, 1, 1) for at in (t, schedule.next_timestep(t)))
    sigma = schedule.sigma(t).double()
    wide = sigma.reshape(-1, 1, 1, 1)
    x_t, ref_mean = noise(1, 4, 2, 2, seed=1), noise(1, 4, 2, 2, seed=2)
    landed = [ref_mean + wide * noise(1, 4, 2, 2, seed=seed) for seed in (3, 4)]

    def readable(latent):
        if decode == "present":
            return decoder.decode(latent), sigma
        x0, factor = implied_x0(latent, x_t, alpha, alpha_prev, wide)
        return decoder.decode(x0), sigma / factor.flatten().abs()

    def densities(mean):
        """Winner's and loser's, in the latent and in pixels."""
        latent = [-((x - mean) ** 2).flatten(1).mean(1) / (2 * sigma**2) for x in landed]
        pixel = [pixel_log_density(readable(x)[0], *readable(mean)) for x in landed]
        return latent, pixel

    base = densities(ref_mean)

    def total(mean):
        terms = [spo_loss(*mine, *ref, beta=10.0, clip=0.5)[0] for mine, ref in zip(densities(mean), base, strict=True)]
        return combine(*terms, weight=0.5, latent_weight=latent_weight).sum()

    start = ref_mean + 0.1 * wide * noise(1, 4, 2, 2, seed=5)
    for mine, ref in zip(densities(start), base, strict=True):
        assert all(0.5 < float((m - r).exp()) < 1.5 for m, r in zip(mine, ref, strict=True)), "inside the clip range"
    assert_gradient_by_differences(total, start)


def assert_gradient_by_differences(function, start, h=1e-5, directions=3):
    """Directional derivatives along random directions: central differences, float64."""
    point = start.clone().requires_grad_()
    function(point).backward()
    for seed in range(directions):
        along = noise(*start.shape, seed=100 + seed)
        with torch.no_grad():
            slope = (function(start + h * along) - function(start - h * along)) / (2 * h)
        assert float((point.grad * along).sum()) == pytest.approx(float(slope), rel=1e-6, abs=1e-9)


def test_implied_x0_undoes_the_step():
    """A step's own mean implies the x0 that the step was made from."""
    table = torch.linspace(0.999, 0.01, 1000)
    schedule = NoiseSchedule(table, torch.tensor([951, 901]), 50, "epsilon", 1.0)
    x_t, output, t = noise(2, 4, 2, 2).float(), noise(2, 4, 2, 2, seed=5).float(), torch.tensor([901, 1])
    move = transition(schedule, output, x_t, t)
    alpha, alpha_prev = (table[at].reshape(-1, 1, 1, 1) for at in (t, schedule.next_timestep(t)))
    x0, factor = implied_x0(move.mean, x_t, alpha, alpha_prev, schedule.sigma(t).reshape(-1, 1, 1, 1))
    torch.testing.assert_close(x0, move.x0, rtol=2e-4, atol=2e-4)
    assert bool((factor > 0).all())


def test_pixel_log_density_by_hand():
    """Differences 1 and 3: mean square 5, sigma 0.5: -5 / 0.5 = -10."""
    target, mean = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)
    assert pixel_log_density(target, mean, torch.tensor([0.5])).item() == -10.0
