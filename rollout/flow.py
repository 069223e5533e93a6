"""The stochastic flow-matching step of SD3 and FLUX (Flow-GRPO, arXiv:2505.05470), for the same callers as DDIM's.

Their sampler is an ODE, which has no log-probability; the noise that Flow-GRPO adds keeps its marginals and gives one.
Sigma runs from 1 (noise) to 0 over the schedule and is no whole number, while records, thresholds and scorers speak of
whole timesteps. A step is therefore named by round(1000 sigma), and its exact sigma is looked up by that name.

The last step (to sigma 0) is the ODE's: it has no noise and is not trained on. It lands on x0 = x - sigma v exactly, so
that a candidate scored through its x0 just before it has been scored as the finished picture.
Shapes: B rows, C H W latent, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from rollout.transition import NoiseSchedule, Transition

_READ = (
    "num_train_timesteps",
    "shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "time_shift_type",
)
"""What the schedule takes from a checkpoint's scheduler."""
_REFUSED = (
    "invert_sigmas",
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "stochastic_sampling",
)
"""What would change the schedule or the step, and is neither SD3's nor FLUX's."""


@dataclass(frozen=True)
class FlowSchedule(NoiseSchedule):
    """The sigmas behind the steps. Build it with `flow_schedule`."""

    sigmas: Tensor
    """float32 [N + 1], from 1 down to 0"""
    names: Tensor
    """int64 [N + 1]: round(1000 sigma), descending to 0; `timesteps` without its last"""
    noise_level: float
    """a: how much noise a step adds; 0 is the ODE"""

    @property
    def trained_timesteps(self) -> Tensor:
        return self.timesteps[:-1]

    def to(self, device: torch.device | str) -> FlowSchedule:
        return replace(
            self,
            alphas_cumprod=self.alphas_cumprod.to(device),
            sigmas=self.sigmas.to(device),
            names=self.names.to(device),
        )

    def next_timestep(self, t: Tensor) -> Tensor:
        names = self.names.to(t.device)
        return names[(self._index(t) + 1).clamp(max=len(names) - 1)]

    def network_time(self, t: Tensor) -> Tensor:
        """1000 sigma, float32 [B]: what the network was trained to be told."""
        return self.flow_sigma(t) * 1000

    def flow_sigma(self, t: Tensor) -> Tensor:
        """Sigma [B] at timestep t: the share of noise in x = (1 - sigma) x0 + sigma noise."""
        return self.sigmas.to(t.device)[self._index(t)]

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation [B] of the step that leaves t: g sqrt(-delta); 0 for the last one."""
        _, delta, g2 = self._step(t)
        return torch.sqrt(g2 * -delta)

    def step(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> Transition:
        sigma, delta, g2 = (part.reshape(-1, 1, 1, 1) for part in self._step(t))
        drift = g2 / (2 * sigma)
        mean = x_t * (1 + drift * delta) + model_output * (1 + drift * (1 - sigma)) * delta
        return Transition(mean, torch.sqrt(g2 * -delta), x_t - sigma * model_output)

    def predict_x0(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t - self.flow_sigma(t).reshape(-1, 1, 1, 1) * model_output

    def _step(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sigma, delta = sigma' - sigma, and g^2 = a^2 sigma / (1 - sigma), each [B]; g = 0 in the last step."""
        index, sigmas = self._index(t), self.sigmas.to(t.device)
        if bool((index == len(sigmas) - 1).any()):
            raise ValueError("no step leaves timestep 0")
        sigma, after = sigmas[index], sigmas[index + 1]
        denominator = 1 - torch.where(sigma == 1, sigmas[1], sigma)
        g2 = self.noise_level**2 * sigma / denominator
        return sigma, after - sigma, torch.where(after == 0, torch.zeros_like(g2), g2)

    def _index(self, t: Tensor) -> Tensor:
        ascending = self.names.to(t.device).flip(0)
        place = torch.searchsorted(ascending, t).clamp(max=len(ascending) - 1)
        if not bool((ascending[place] == t).all()):
            wrong = t[ascending[place] != t].tolist()
            raise ValueError(
                f"timestep {wrong[0]} is none of this flow's steps {self.names.tolist()}; it comes from another "
                "schedule (noise.num_steps, the checkpoint's shift, or the picture's size)"
            )
        return len(ascending) - 1 - place


def flow_schedule(
    scheduler: Any, num_steps: int, *, noise_level: float, tokens: int, from_one_to_last: bool
) -> FlowSchedule:
    """The schedule that the stock pipeline walks, by a scheduler built from explicit fields.

    `tokens` is the length of the picture's token sequence, on which a dynamic shift depends. `from_one_to_last`: sigmas
    evenly from 1 to 1 / N before the shift (FLUX), else the scheduler's own spacing (SD3).
    Raises ValueError for a scheduler of another kind, and for fields that would change the schedule.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(f"{type(scheduler).__name__} is no flow-matching scheduler; is model.family right?")
    config = scheduler.config
    if found := [name for name in _REFUSED if config.get(name)]:
        raise ValueError(f"scheduler_config.json sets {', '.join(found)}, which these steps do not follow; unset them")
    fields = {name: config[name] for name in _READ}
    if fields["num_train_timesteps"] != 1000:
        raise ValueError(f"num_train_timesteps is {fields['num_train_timesteps']}; timesteps here count to 1000")
    if num_steps < 2:
        raise ValueError(f"noise.num_steps is {num_steps}; a flow needs 2 or more (its last step is not trained on)")
    own = FlowMatchEulerDiscreteScheduler(**fields)
    for name in _READ:
        assert own.config[name] == fields[name]
    sizes = (fields["base_image_seq_len"], fields["max_image_seq_len"], fields["base_shift"], fields["max_shift"])
    mu = calculate_shift(tokens, *sizes) if fields["use_dynamic_shifting"] else None
    spacing = {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps)} if from_one_to_last else {}
    own.set_timesteps(num_steps, mu=mu, **spacing)
    return from_sigmas(own.sigmas, noise_level)


def from_sigmas(sigmas: Tensor, noise_level: float) -> FlowSchedule:
    """A schedule over given sigmas [N + 1], descending to 0. Raises ValueError where two steps share a name."""
    sigmas = sigmas.to(torch.float32)
    names = (sigmas * 1000).round().long()
    if not bool((sigmas.diff() < 0).all()) or float(sigmas[-1]) != 0:
        raise ValueError(f"sigmas must fall to 0: {sigmas.tolist()}")
    if len(set(names.tolist())) != len(names):
        raise ValueError(f"{len(names) - 1} steps lie closer together than 1/1000; lower noise.num_steps")
    return FlowSchedule(
        alphas_cumprod=torch.empty(0),  # a flow has none: whoever reads it fails at once
        timesteps=names[:-1].clone(),
        stride=0,
        prediction_type="flow",
        eta=1.0,
        sigmas=sigmas,
        names=names,
        noise_level=noise_level,
    )
