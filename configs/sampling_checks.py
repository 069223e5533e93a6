"""Denoising steps and the candidates drawn at them: what contradicts itself. Collected by `configs.checks`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from configs.model import FLOW_FAMILIES
from configs.rollout import SigmaThreshold, StepwiseSampler
from configs.timesteps import TRAINING_TIMESTEPS, candidate_targets, step_targets

if TYPE_CHECKING:
    from configs.schema import AtelierConfig


def _num_steps(config: AtelierConfig) -> Iterator[str]:
    steps = config.noise.num_steps
    if config.model.family in FLOW_FAMILIES:
        return
    walked = steps * (TRAINING_TIMESTEPS // steps)
    if steps == TRAINING_TIMESTEPS:
        yield (
            f"noise.num_steps = {steps}: with offset 1 the first step would leave timestep {steps}, which the model's "
            f"{TRAINING_TIMESTEPS} timesteps (0..{TRAINING_TIMESTEPS - 1}) do not have. Set it to 500 or less."
        )
    elif walked < 0.9 * TRAINING_TIMESTEPS:
        stride = TRAINING_TIMESTEPS // steps
        yield (
            f"noise.num_steps = {steps}: steps are {TRAINING_TIMESTEPS} // {steps} = {stride} timesteps wide, so that "
            f"sampling would start at timestep {walked - stride + 1} although it starts from pure noise. Set it to "
            f"{TRAINING_TIMESTEPS // (stride + 1)} or less, best a divisor of {TRAINING_TIMESTEPS}."
        )


def _candidate_steps(config: AtelierConfig) -> Iterator[str]:
    sampler, steps = config.rollout.sampler, config.noise.num_steps
    if not isinstance(sampler, StepwiseSampler):
        return
    if sampler.min_timestep > sampler.kappa:
        yield (
            f"rollout.sampler.min_timestep = {sampler.min_timestep} is above rollout.sampler.kappa = {sampler.kappa}: "
            f"no step would draw candidates. Set min_timestep below kappa."
        )
        return
    if config.model.family in FLOW_FAMILIES:
        return
    count = len(candidate_targets(steps, sampler.kappa, sampler.min_timestep))
    if count == 0:
        near = min(step_targets(steps), key=lambda target: abs(target - sampler.kappa))
        yield (
            f"rollout.sampler.kappa = {sampler.kappa} and rollout.sampler.min_timestep = {sampler.min_timestep} leave "
            f"no step of noise.num_steps = {steps} to draw candidates at. Set them so that {near}, the target timestep "
            f"nearest to kappa, lies between them."
        )
    elif sampler.block_length > count:
        yield (
            f"rollout.sampler.block_length = {sampler.block_length} is longer than the {count} steps that draw "
            f"candidates (noise.num_steps = {steps}, rollout.sampler.kappa = {sampler.kappa}, "
            f"rollout.sampler.min_timestep = {sampler.min_timestep}). Set block_length to {count} or less."
        )


def _threshold(config: AtelierConfig) -> Iterator[str]:
    sampler = config.rollout.sampler
    threshold = sampler.threshold if isinstance(sampler, StepwiseSampler) else None
    if isinstance(threshold, SigmaThreshold) and threshold.low > threshold.high:
        yield (
            f"rollout.sampler.threshold.low = {threshold.low} is above rollout.sampler.threshold.high = "
            f"{threshold.high}: the threshold rises with the noise level. Exchange the two."
        )


SAMPLING_CHECKS = (_num_steps, _candidate_steps, _threshold)
