"""One stochastic denoising step, shared by sampler and learner: the same function, so that they cannot disagree.

DDIM (arXiv:2010.02502, eqs. 12 and 16) with two deliberate departures that the step-wise papers make:
the last step's target is clamped to timestep 0 before the table is read, so that its sigma is above 0, and the
log-probability is the mean, not the sum, over elements (beta and the clip range are stated for the mean).

Shapes: B rows, C H W latent. Everything is float32. Each row may be at its own timestep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The table behind the steps. Build it from a scheduler with `from_scheduler`."""

    alphas_cumprod: Tensor
    """float32 [num_train_timesteps]"""
    timesteps: Tensor
    """int64 [N], descending: `leading` spacing, offset 1 (951, 901, .. 1 for N = 20)"""
    stride: int
    """Timesteps between a step and its target: num_train_timesteps // N"""
    prediction_type: PredictionType
    eta: float

    @classmethod
    def from_scheduler(cls, scheduler: Any, num_steps: int, *, eta: float = 1.0) -> NoiseSchedule:
        """Take betas and prediction kind from a diffusers scheduler; everything else is set here, not inherited.

        A scheduler built `from_config` of another kind inherits spacing and offsets that change the schedule, so
        only the noise table and the kind of prediction are read. Raises ValueError for eta <= 0 or a scheduler
        without a table of cumulative alphas.
        """
        if not eta > 0:
            raise ValueError(f"eta is {eta}: a deterministic step has no log-probability; set noise.eta above 0")
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            raise ValueError(f"{type(scheduler).__name__} has no alphas_cumprod; a DDIM-like noise schedule is needed")
        prediction_type = scheduler.config.prediction_type
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type {prediction_type!r} is not one of epsilon, v_prediction, sample")
        if scheduler.config.get("rescale_betas_zero_snr", False):
            raise ValueError("rescale_betas_zero_snr gives the first step an infinite signal-to-noise ratio; unset it")
        total = int(table.shape[0])
        if not 2 <= num_steps < total:  # with offset 1, `total` steps would begin beyond the table
            raise ValueError(f"noise.num_steps is {num_steps}; this schedule allows 2..{total - 1}")
        stride = total // num_steps
        timesteps = torch.arange(num_steps - 1, -1, -1, dtype=torch.int64) * stride + 1
        return cls(table.to(torch.float32).clone(), timesteps, stride, prediction_type, eta)

    @property
    def trained_timesteps(self) -> Tensor:
        """int64, descending: the steps with noise, and so with a log-probability. All of them for DDIM."""
        return self.timesteps

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule with its table on `device`."""
        return NoiseSchedule(
            self.alphas_cumprod.to(device), self.timesteps, self.stride, self.prediction_type, self.eta
        )

    def next_timestep(self, t: Tensor) -> Tensor:
        """t' [B]: the step's target, clamped to 0 before the table is read."""
        return (t - self.stride).clamp(min=0)

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation [B] of the step that leaves t. DDIM eq. 16: eta^2 (1-a')/(1-a) (1 - a/a')."""
        a, a_next = self.alphas_cumprod[t], self.alphas_cumprod[self.next_timestep(t)]
        return self.eta * torch.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told for timestep t [B]: t itself."""
        return t

    def step(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> Transition:
        """See `transition`."""
        a = _rows(self.alphas_cumprod[t])
        a_next = _rows(self.alphas_cumprod[self.next_timestep(t)])
        x0, epsilon = to_x0_and_epsilon(self.prediction_type, model_output, x_t, a)
        std = _rows(self.sigma(t))
        mean = a_next.sqrt() * x0 + torch.sqrt(1 - a_next - std**2) * epsilon  # eq. 12
        return Transition(mean, std, x0)

    def predict_x0(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """See `predict_x0` below."""
        return to_x0_and_epsilon(self.prediction_type, model_output, x_t, _rows(self.alphas_cumprod[t]))[0]


@dataclass(frozen=True)
class Transition:
    """The Gaussian that one step draws from: x_prev ~ N(mean, std^2)."""

    mean: Tensor
    """float32 [B, C, H, W]"""
    std: Tensor
    """float32 [B, 1, 1, 1]"""
    x0: Tensor
    """float32 [B, C, H, W], the predicted clean latent"""

    def sample(self, noise: Tensor) -> Tensor:
        """x_prev [B, C, H, W] for standard normal `noise` of that shape."""
        return self.mean + self.std * noise


def transition(schedule: NoiseSchedule, model_output: Tensor, x_t: Tensor, t: Tensor) -> Transition:
    """The step from x_t at timestep t (int64 [B], may differ per row), given the guided network output."""
    assert model_output.dtype == x_t.dtype == torch.float32, "transitions are computed in float32"
    assert t.dtype == torch.int64
    return schedule.step(model_output, x_t, t)


def predict_x0(schedule: NoiseSchedule, model_output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x0 [B, C, H, W] predicted at timestep t >= 0, also for t = 0, from which no step leaves."""
    return schedule.predict_x0(model_output, x_t, t)


def add_noise(schedule: NoiseSchedule, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t = sqrt(a) z + sqrt(1 - a) eps [B, C, H, W] for clean z, noise [B, C, H, W] and t int64 [B]."""
    a = _rows(schedule.alphas_cumprod[t])
    return a.sqrt() * z + (1 - a).sqrt() * noise


def predicted_noise(schedule: NoiseSchedule, model_output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """epsilon [B, C, H, W] that a network output of any kind predicts at t int64 [B]."""
    a = _rows(schedule.alphas_cumprod[t])
    return to_x0_and_epsilon(schedule.prediction_type, model_output, z_t, a)[1]


def to_x0_and_epsilon(kind: PredictionType, output: Tensor, x_t: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Convert a network output of any kind to (x0, epsilon); `a` is alphas_cumprod [B, 1, 1, 1]."""
    if kind == "flow":
        raise ValueError("a flow's velocity is no diffusion prediction: this objective needs a DDIM-like family")
    if kind == "epsilon":
        return (x_t - (1 - a).sqrt() * output) / a.sqrt(), output
    if kind == "v_prediction":
        return a.sqrt() * x_t - (1 - a).sqrt() * output, a.sqrt() * output + (1 - a).sqrt() * x_t
    return output, (x_t - a.sqrt() * output) / (1 - a).sqrt()


def log_prob(x_prev: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log p(x_prev | x_t, c) [B]: the mean over elements of the Gaussian's log density.

    x_prev, mean: float32 [B, C, H, W]; std: [B, 1, 1, 1].
    """
    assert x_prev.dtype == mean.dtype == torch.float32
    density = -((x_prev - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return density.mean(dim=tuple(range(1, x_prev.dim())))


def _rows(per_row: Tensor) -> Tensor:
    return per_row.reshape(-1, 1, 1, 1)
