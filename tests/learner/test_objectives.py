"""Losses on errors and on trajectories: literal numbers by hand, float64 gradients, signs."""

from __future__ import annotations

import math

import pytest
import torch

from configs.sources import READS
from learner.objectives import OBJECTIVES, d3po_loss, ddpo_loss, dpo_loss, mapo_loss, sft_loss, simpo_loss, spo_loss
from learner.objectives.mapo import odds
from learner.readers import READERS

CONSTANTS = {
    "simpo": (simpo_loss, 2, {"beta": 2.0}),
    "dpo": (dpo_loss, 4, {"beta": 5.0}),
    "sft": (sft_loss, 1, {}),
    "mapo": (mapo_loss, 2, {"weight": 0.1, "snr": 0.5, "num_timesteps": 10}),
    "ddpo": (ddpo_loss, 2, {"clip": 0.1, "advantage_clamp": 5.0}),
    "d3po": (d3po_loss, 4, {"beta": 0.1, "clip": 0.1}),
}


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_simpo_by_hand():
    """-log sigmoid(-2 (0.2 - 0.5)) = ln(1 + exp(-0.6)) = ln 1.5488116 = 0.4374880."""
    loss, metrics = simpo_loss(double(0.2, 0.5), double(0.5, 0.5), beta=2.0)
    assert loss.tolist() == [pytest.approx(0.4374880, abs=1e-7), pytest.approx(math.log(2))]
    assert metrics["pairs/accuracy"].tolist() == [1, 0]


def test_diffusion_dpo_by_hand():
    """beta 5000, margin (0.1000 - 0.1002) - 0 = -0.0002: -log sigmoid(0.5) = ln(1 + exp(-0.5)) = 0.4740770."""
    loss, metrics = dpo_loss(double(0.1), double(0.1002), double(0.3), double(0.3), beta=5000.0)
    assert loss.item() == pytest.approx(0.4740770, abs=1e-7)
    assert metrics["pairs/accuracy"].item() == 1


def test_diffusion_dpo_starts_at_ln_2_whatever_the_errors():
    win, lose = torch.rand(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    loss, _ = dpo_loss(win, lose, win, lose, beta=5000.0)
    assert loss.tolist() == [pytest.approx(math.log(2))] * 4


def test_mapo_by_hand():
    """h(0.1) = 0.05 / 0.0512711 = 0.9752083, h(0.2) = 0.1 / 0.1051709 = 0.9508332, times T 10: margin 0.243751;
    -log sigmoid of it is ln(1 + exp(-0.243751)) = 0.578680, so 0.1 + 0.1 * 0.578680 = 0.157868."""
    loss, _ = mapo_loss(double(0.1), double(0.2), weight=0.1, snr=0.5, num_timesteps=10)
    assert loss.item() == pytest.approx(0.157868, abs=1e-6)


def test_mapo_s_h_is_exact_near_zero_in_float32():
    assert odds(torch.tensor([0.0, 1e-7, 2.0]), 0.5).tolist() == [
        1.0,
        pytest.approx(1 - 2.5e-8, abs=1e-7),
        pytest.approx(1 / (math.e - 1), abs=1e-6),
    ]


def test_ddpo_by_hand():
    """Ratio 1.0002, clip 1e-4. Advantage 2: max(-2.0004, -2.0002); -2: max(2.0004, 2.0002); 9 is clamped to 5."""
    logp = torch.log(double(1.0002, 1.0002, 1.0))
    loss, metrics = ddpo_loss(logp, double(0, 0, 0), double(2, -2, 9), clip=1e-4, advantage_clamp=5.0)
    assert loss.tolist() == [pytest.approx(v, abs=1e-9) for v in (-2.0002, 2.0004, -5.0)]
    assert metrics["ratio/clamped"].tolist() == [1, 0, 0]


def test_ddpo_raises_what_was_good_and_lowers_what_was_bad():
    logp = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    ddpo_loss(logp, double(0, 0, 0), double(1, -1, -9), clip=1e-4, advantage_clamp=5.0)[0].sum().backward()
    assert logp.grad.tolist() == [-1, 1, 5]


def test_d3po_is_spo_s_loss_on_other_pairs():
    inputs = [torch.randn(5, dtype=torch.float64) * 0.05 for _ in range(4)]
    expected = spo_loss(*inputs, beta=0.1, clip=0.1)[0]
    assert torch.equal(d3po_loss(*inputs, beta=0.1, clip=0.1)[0], expected)


def test_sft_is_the_error():
    assert sft_loss(double(0.25))[0].item() == 0.25


def test_pairs_are_reduced_one_by_one_before_their_mean():
    """Margins -0.4 and 0.7 at beta 2: ln(1 + exp(-0.8)) = 0.371101 and ln(1 + exp(1.4)) = 1.620417, mean 0.995759;
    of the mean margin it would be ln(1 + exp(0.3)) = 0.854355."""
    loss, _ = simpo_loss(double(0.1, 0.9), double(0.5, 0.2), beta=2.0)
    assert loss.tolist() == [pytest.approx(0.371101, abs=1e-6), pytest.approx(1.620417, abs=1e-6)]
    assert loss.mean().item() == pytest.approx(0.995759, abs=1e-6)


def test_dpo_of_an_indifferent_reference_is_simpo_at_half_its_beta():
    win, lose, same = double(0.1, 0.4), double(0.3, 0.2), double(0.25, 0.25)
    assert torch.equal(dpo_loss(win, lose, same, same, beta=6.0)[0], simpo_loss(win, lose, beta=3.0)[0])


def test_mapo_without_its_margin_is_sft():
    win, lose = double(0.1, 0.4), double(0.3, 0.2)
    loss, _ = mapo_loss(win, lose, weight=1e-12, snr=0.5, num_timesteps=1)
    torch.testing.assert_close(loss, sft_loss(win)[0], rtol=0, atol=1e-11)


def test_ddpo_under_the_sampling_policy_is_the_policy_gradient():
    """Ratio 1: the loss is -a and its gradient by log p is -a, so that a step is REINFORCE's."""
    logp = double(0.3, -0.2).requires_grad_()
    loss, metrics = ddpo_loss(logp, logp.detach(), double(1.5, -0.5), clip=1e-4, advantage_clamp=5.0)
    loss.sum().backward()
    assert loss.tolist() == [-1.5, 0.5] and logp.grad.tolist() == [-1.5, 0.5]
    assert metrics["ratio/policy"].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["spo", "d3po"])
def test_descending_raises_the_winner_s_probability_and_lowers_the_loser_s(name):
    inputs = [double(0.0, 0.03).requires_grad_() for _ in range(2)] + [double(0.0, 0.0)] * 2
    OBJECTIVES[name](*inputs, beta=10.0, clip=0.1)[0].sum().backward()
    assert bool((inputs[0].grad < 0).all()) and bool((inputs[1].grad > 0).all())


@pytest.mark.parametrize("name", CONSTANTS)
def test_gradients_against_float64_differences(name):
    function, count, constants = CONSTANTS[name]
    torch.manual_seed(3)
    inputs = [(0.03 * torch.rand(6, dtype=torch.float64) + 0.2).requires_grad_() for _ in range(count)]
    extra = (double(1, -1, 2, -2, 3, -3),) if name == "ddpo" else ()
    assert torch.autograd.gradcheck(lambda *x: function(*x, *extra, **constants)[0].sum(), inputs)


@pytest.mark.parametrize("name", ["simpo", "dpo", "mapo"])
def test_descending_lowers_the_winner_s_error_and_raises_the_loser_s(name):
    function, count, constants = CONSTANTS[name]
    inputs = [double(0.3, 0.1).requires_grad_() for _ in range(count)]
    function(*inputs, **constants)[0].sum().backward()
    assert bool((inputs[0].grad > 0).all()) and bool((inputs[1].grad < 0).all())


def test_every_objective_has_a_function_a_reader_and_a_source():
    assert OBJECTIVES.keys() == READERS.keys() == READS.keys()
