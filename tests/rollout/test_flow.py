"""The stochastic flow-matching step against literal numbers, float64, and the marginals it must keep."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from configs.load import load_config
from rollout.flow import flow_schedule, from_sigmas
from rollout.transition import log_prob, predict_x0, transition

A = 0.7


def schedule(noise_level=A):
    return from_sigmas(torch.tensor([1.0, 0.75, 0.5, 0.2, 0.0]), noise_level)


def test_steps_are_named_by_their_sigma():
    flow = schedule()
    assert flow.timesteps.tolist() == [1000, 750, 500, 200] and flow.trained_timesteps.tolist() == [1000, 750, 500]
    assert flow.next_timestep(flow.timesteps).tolist() == [750, 500, 200, 0]
    assert flow.network_time(torch.tensor([0, 200, 1000])).tolist() == pytest.approx([0.0, 200.0, 1000.0])


def test_one_step_by_hand():
    """sigma 0.5 to 0.2, x = 2, v = 1: g^2 = 0.49, drift g^2/(2 sigma) = 0.49, delta = -0.3.

    mean = 2 (1 - 0.147) - 0.3 (1 + 0.49 * 0.5) = 1.706 - 0.3735 = 1.3325; std = 0.7 sqrt(0.3) = 0.3834058.
    """
    move = transition(schedule(), torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0), torch.tensor([500]))
    assert move.mean.item() == pytest.approx(1.3325, abs=1e-6)
    assert move.std.item() == pytest.approx(0.3834058, abs=1e-6)
    assert move.x0.item() == pytest.approx(1.5)
    z = (1.5 - 1.3325) / 0.3834058
    by_hand = -0.5 * z * z - math.log(0.3834058) - 0.5 * math.log(2 * math.pi)
    assert log_prob(torch.full((1, 1, 1, 1), 1.5), move.mean, move.std).item() == pytest.approx(by_hand, abs=1e-5)


def test_the_first_step_takes_the_second_sigma_in_its_denominator():
    """sigma = 1: g^2 = 0.49 * 1 / (1 - 0.75) = 1.96; std = 1.4 sqrt(0.25) = 0.7; mean = x (1 - 0.245) - 0.25 v."""
    x, v = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), -2.0)
    move = transition(schedule(), v, x, torch.tensor([1000]))
    assert move.std.item() == pytest.approx(0.7, abs=1e-6)
    assert move.mean.item() == pytest.approx(3 * 0.755 + 0.5, abs=1e-6)


def test_the_last_step_is_the_odes_and_lands_on_x0():
    x, v = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    move = transition(schedule(), v, x, torch.full((3,), 200))
    assert move.std.abs().max() == 0
    torch.testing.assert_close(move.mean, x - 0.2 * v)
    torch.testing.assert_close(move.mean, predict_x0(schedule(), v, x, torch.full((3,), 200)))


def test_all_steps_against_float64_with_rows_of_their_own():
    flow = flow_schedule(
        FlowMatchEulerDiscreteScheduler(shift=3.0), 20, noise_level=A, tokens=16, from_one_to_last=False
    )
    sigmas, steps = flow.sigmas.double(), flow.trained_timesteps
    x, v = torch.randn(2, len(steps), 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    move = transition(flow, v, x, steps)
    landed = move.sample(torch.randn(x.shape, generator=torch.Generator().manual_seed(4)))
    logp = log_prob(landed, move.mean, move.std)
    for row in range(len(steps)):
        s, after = float(sigmas[row]), float(sigmas[row + 1])
        g2 = A * A * s / (1 - (float(sigmas[1]) if s == 1 else s))
        mean = x[row].double() * (1 + g2 / (2 * s) * (after - s))
        mean += v[row].double() * (1 + g2 * (1 - s) / (2 * s)) * (after - s)
        torch.testing.assert_close(move.mean[row].double(), mean, rtol=1e-5, atol=1e-5)
        std = math.sqrt(g2 * (s - after))
        assert move.std[row].item() == pytest.approx(std, rel=1e-5)
        density = -((landed[row].double() - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
        assert logp[row].item() == pytest.approx(density.mean().item(), abs=2e-5)


def test_the_added_noise_keeps_the_mean_path_of_a_perfect_network():
    """With x = (1 - s) x0 + s n and the true v = n - x0, fine steps end at x0 whatever noise was added."""
    flow = from_sigmas(torch.linspace(1, 0, 401), A)
    generator = torch.Generator().manual_seed(2)
    x0 = torch.randn(1, 1, 16, 16, generator=generator)
    x = torch.randn(1, 1, 16, 16, generator=generator)
    for step in flow.timesteps.tolist():
        t = torch.tensor([step])
        v = (x - x0) / flow.flow_sigma(t)
        x = transition(flow, v, x, t).sample(torch.randn(x.shape, generator=generator))
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-4)


def test_what_would_change_the_schedule_is_refused():
    def build(scheduler, steps=6):
        return flow_schedule(scheduler, steps, noise_level=A, tokens=16, from_one_to_last=False)

    with pytest.raises(ValueError, match="use_karras_sigmas"):
        build(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True))
    with pytest.raises(ValueError, match="shift_terminal"):
        build(FlowMatchEulerDiscreteScheduler(shift_terminal=0.1))
    with pytest.raises(ValueError, match=r"DDIMScheduler is no flow-matching scheduler.*model\.family"):
        build(DDIMScheduler())
    with pytest.raises(ValueError, match="closer together than 1/1000"):
        build(FlowMatchEulerDiscreteScheduler(shift=3.0), 900)
    with pytest.raises(ValueError, match=r"num_train_timesteps is 500"):
        build(FlowMatchEulerDiscreteScheduler(num_train_timesteps=500))
    with pytest.raises(ValueError, match=r"timestep 501 is none of this flow's steps"):
        schedule().sigma(torch.tensor([500, 501]))
    with pytest.raises(ValueError, match="no step leaves timestep 0"):
        schedule().sigma(torch.tensor([0]))


def test_settings_that_a_family_has_no_use_for_are_refused():
    with pytest.raises(ValueError, match=r"noise\.negative_prompt = 'ugly' with model\.family = flux"):
        load_config(None, ["model.family=flux", "noise.negative_prompt=ugly"])
    with pytest.raises(ValueError, match=r"model\.t5 = false with model\.family = sd"):
        load_config(None, ["model.t5=false"])
