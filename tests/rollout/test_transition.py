"""The denoising step against diffusers, a float64 computation by hand, and literal numbers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from rollout.transition import NoiseSchedule, log_prob, predict_x0, transition


def make_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )


def test_schedule_is_the_papers():
    schedule = NoiseSchedule.from_scheduler(make_scheduler(), 20)
    assert schedule.timesteps.tolist() == list(range(951, 0, -50))
    assert schedule.next_timestep(torch.tensor([951, 51, 1])).tolist() == [901, 1, 0]


def test_schedule_ignores_the_spacing_of_an_inherited_scheduler():
    euler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    mine, plain = (NoiseSchedule.from_scheduler(s, 20) for s in (euler, make_scheduler()))
    assert torch.equal(mine.timesteps, plain.timesteps)
    assert torch.equal(mine.alphas_cumprod, plain.alphas_cumprod)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_step_agrees_with_diffusers_at_every_step(kind):
    """All steps; the last one too, because diffusers with set_alpha_to_one false makes the same clamp."""
    scheduler = make_scheduler(kind)
    scheduler.set_timesteps(20)
    schedule = NoiseSchedule.from_scheduler(scheduler, 20)
    generator = torch.Generator().manual_seed(0)
    for step in scheduler.timesteps:
        x, output, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
        theirs = scheduler.step(output, step, x, eta=1.0, variance_noise=noise)
        mine = transition(schedule, output, x, torch.full((2,), int(step)))
        torch.testing.assert_close(mine.x0, theirs.pred_original_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.sample(noise), theirs.prev_sample, rtol=1e-5, atol=2e-5)


def test_the_last_step_is_clamped_and_keeps_its_noise():
    """With set_alpha_to_one the last sigma would be 0 and the log-probability infinite: the deliberate departure."""
    scheduler = make_scheduler()
    scheduler.register_to_config(set_alpha_to_one=True)
    schedule = NoiseSchedule.from_scheduler(scheduler, 20)
    a, a0 = schedule.alphas_cumprod[1].double(), schedule.alphas_cumprod[0].double()
    expected = math.sqrt((1 - a0) / (1 - a) * (1 - a / a0))
    assert schedule.sigma(torch.tensor([1])).item() == pytest.approx(expected, rel=1e-3)
    assert schedule.sigma(torch.tensor([1])).item() > 0.01


def test_rows_may_be_at_different_timesteps():
    schedule = NoiseSchedule.from_scheduler(make_scheduler(), 20)
    x, output = torch.randn(2, 2, 4, 8, 8).unbind(0)
    t = torch.tensor([951, 1])
    both = transition(schedule, output, x, t)
    for row in range(2):
        one = transition(schedule, output[row : row + 1], x[row : row + 1], t[row : row + 1])
        torch.testing.assert_close(both.mean[row : row + 1], one.mean, rtol=0, atol=0)


def test_log_prob_is_the_mean_over_elements_of_the_gaussian_density():
    x, mean, std = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.0, 2.5]]]]), torch.full((1, 1, 1, 1), 0.5)
    by_hand = ((-2.0 - math.log(0.5) - 0.9189385) + (-0.5 - math.log(0.5) - 0.9189385)) / 2
    assert log_prob(x, mean, std).item() == pytest.approx(by_hand, abs=1e-6)


def test_log_prob_against_float64():
    schedule = NoiseSchedule.from_scheduler(make_scheduler(), 20)
    x, output, noise = torch.randn(3, 4, 4, 8, 8).unbind(0)
    t = torch.tensor([751, 501, 251, 1])
    move = transition(schedule, output, x, t)
    after = move.sample(noise)
    a = make_scheduler().alphas_cumprod.double()
    at, an = (a[i].reshape(-1, 1, 1, 1) for i in (t, (t - 50).clamp(min=0)))
    x0 = (x.double() - (1 - at).sqrt() * output) / at.sqrt()
    std = ((1 - an) / (1 - at) * (1 - at / an)).sqrt()
    mean = an.sqrt() * x0 + (1 - an - std**2).sqrt() * output
    expected = torch.distributions.Normal(mean, std.expand_as(mean)).log_prob(after.double()).mean((1, 2, 3))
    torch.testing.assert_close(log_prob(after, move.mean, move.std).double(), expected, rtol=0, atol=3e-5)


def test_predict_x0_inverts_the_forward_process_at_timestep_0_too():
    schedule = NoiseSchedule.from_scheduler(make_scheduler(), 20)
    clean, noise = torch.randn(2, 3, 4, 8, 8).unbind(0)
    t = torch.tensor([0, 501, 951])
    a = schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(
        predict_x0(schedule, noise, a.sqrt() * clean + (1 - a).sqrt() * noise, t), clean, rtol=1e-3, atol=1e-4
    )


def test_settings_that_have_no_log_probability_are_refused():
    with pytest.raises(ValueError, match=r"eta is 0\.0"):
        NoiseSchedule.from_scheduler(make_scheduler(), 20, eta=0.0)
    with pytest.raises(ValueError, match=r"FlowMatch.*alphas_cumprod"):
        NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler(), 20)
    with pytest.raises(ValueError, match=r"num_steps is 1000.*2\.\.999"):
        NoiseSchedule.from_scheduler(make_scheduler(), 1000)
