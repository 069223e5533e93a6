"""The SPO loss: literal numbers, gradients, and the papers' floor."""

import math

import pytest
import torch

from learner.objectives import OBJECTIVES, spo_loss


def loss_of(win, lose, *, beta=10.0, clip=0.1):
    zeros = torch.zeros(len(win), dtype=win.dtype)
    return spo_loss(win, lose, zeros, zeros, beta=beta, clip=clip)


def test_starts_at_ln_2_with_ratio_1():
    logp = torch.randn(5)
    loss, metrics = spo_loss(logp, logp - 1, logp, logp - 1, beta=10.0, clip=0.1)
    assert loss.tolist() == [pytest.approx(math.log(2), abs=1e-7)] * 5
    assert metrics["ratio/win"].tolist() == metrics["ratio/lose"].tolist() == [1.0] * 5


def test_literal_numbers_by_hand():
    """log r_w = 0.05, log r_l = -0.02: -log sigmoid(10 * 0.07) = log(1 + exp(-0.7)) = 0.40318605."""
    loss, _ = loss_of(torch.tensor([0.05]), torch.tensor([-0.02]))
    assert loss.item() == pytest.approx(0.40318605, abs=1e-6)


def test_floor_of_the_clipped_loss():
    loss, metrics = loss_of(torch.tensor([3.0]), torch.tensor([-3.0]))
    assert loss.item() == pytest.approx(math.log(1 + (0.9 / 1.1) ** 10), abs=1e-6)
    assert loss.item() == pytest.approx(0.126, abs=1e-3)
    assert metrics["ratio/clamped"].item() == 1.0


def test_a_pair_with_both_ratios_clamped_has_no_gradient_and_one_clamped_half_has():
    win = torch.tensor([3.0, 3.0], requires_grad=True)
    lose = torch.tensor([-3.0, 0.0], requires_grad=True)
    loss, metrics = loss_of(win, lose)
    loss.sum().backward()
    assert win.grad.tolist() == [0.0, 0.0]
    assert lose.grad[0] == 0.0 and lose.grad[1] > 0
    assert metrics["ratio/clamped"].tolist() == [1.0, 0.0]


def test_without_a_clip_every_pair_has_a_gradient():
    """log r_w = 0.3, log r_l = 0.5: log(1 + exp(2)) = 2.12692801; with a clip of 0.1 both are clamped to 1.1: ln 2."""
    win, lose = (torch.tensor([value], requires_grad=True) for value in (0.3, 0.5))
    assert loss_of(win, lose)[0].item() == pytest.approx(math.log(2), abs=1e-6)
    loss, metrics = loss_of(win, lose, clip=None)
    assert loss.item() == pytest.approx(2.12692801, abs=1e-6) and "ratio/clamped" not in metrics
    assert metrics["ratio/win"].item() == pytest.approx(math.exp(0.3)), "the ratios are reported all the same"
    loss.backward()
    expected = 10 / (1 + math.exp(-2))  # beta sigmoid(-beta (0.3 - 0.5))
    assert win.grad.item() == pytest.approx(-expected) and lose.grad.item() == pytest.approx(expected)
    inside = torch.tensor([0.05]), torch.tensor([-0.02])
    assert torch.allclose(loss_of(*inside)[0], loss_of(*inside, clip=None)[0]), "inside the range the two are one"


@pytest.mark.parametrize("clip", [0.1, None])
def test_gradient_against_float64_differences(clip):
    inputs = tuple(torch.randn(6, dtype=torch.float64).mul(0.03).requires_grad_() for _ in range(4))
    assert torch.autograd.gradcheck(lambda *x: spo_loss(*x, beta=10.0, clip=clip)[0].sum(), inputs)


def test_descending_raises_the_winner_and_lowers_the_loser():
    win, lose = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    loss_of(win, lose)[0].sum().backward()
    assert win.grad.item() == pytest.approx(-5.0) and lose.grad.item() == pytest.approx(5.0)


def test_every_configured_objective_has_a_function():
    from configs.learner import LearnerSection

    assert LearnerSection().objective.type in OBJECTIVES
