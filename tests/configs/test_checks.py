"""Settings that contradict each other: each message names both fields, their values and the fix."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from configs import AtelierConfig
from configs.cautions import cautions
from configs.timesteps import candidate_targets, step_targets
from rollout.stepwise import plan_blocks
from rollout.transition import NoiseSchedule

Load = Callable[..., AtelierConfig]
Refused = Callable[..., str]

CONTRADICTIONS = {
    ("noise.num_steps=1000",): (
        "noise.num_steps = 1000: with offset 1 the first step would leave timestep 1000, which the model's 1000 "
        "timesteps (0..999) do not have. Set it to 500 or less."
    ),
    ("noise.num_steps=600",): (
        "noise.num_steps = 600: steps are 1000 // 600 = 1 timesteps wide, so that sampling would start at timestep "
        "600 although it starts from pure noise. Set it to 500 or less, best a divisor of 1000."
    ),
    ("rollout.sampler.min_timestep=800",): (
        "rollout.sampler.min_timestep = 800 is above rollout.sampler.kappa = 750: no step would draw candidates. "
        "Set min_timestep below kappa."
    ),
    ("rollout.sampler.kappa=40", "rollout.sampler.min_timestep=10"): (
        "rollout.sampler.kappa = 40 and rollout.sampler.min_timestep = 10 leave no step of noise.num_steps = 20 to "
        "draw candidates at. Set them so that 51, the target timestep nearest to kappa, lies between them."
    ),
    ("rollout.sampler.block_length=17",): (
        "rollout.sampler.block_length = 17 is longer than the 16 steps that draw candidates (noise.num_steps = 20, "
        "rollout.sampler.kappa = 750, rollout.sampler.min_timestep = 0). Set block_length to 16 or less."
    ),
    ("rollout.sampler.threshold={low: 0.5, high: 0.1}",): (
        "rollout.sampler.threshold.low = 0.5 is above rollout.sampler.threshold.high = 0.1: the threshold rises with "
        "the noise level. Exchange the two."
    ),
    ("learner.ranks=3",): (
        "learner.groups_per_batch = 8 is not divisible by learner.ranks = 3: every rank takes an equal share of a "
        "global batch. Set groups_per_batch to 6 or 9."
    ),
    ("learner.ranks=16",): (
        "learner.groups_per_batch = 8 is not divisible by learner.ranks = 16: every rank takes an equal share of a "
        "global batch. Set groups_per_batch to 16."
    ),
    ("queue.capacity_groups=7",): (
        "queue.capacity_groups = 7 is below learner.groups_per_batch = 8: the queue would be full before one global "
        "batch is complete, and both sides would wait for ever. Set capacity_groups to 8 or more."
    ),
    ("queue.shards=65",): (
        "queue.shards = 65 is above queue.capacity_groups = 64: some shards would never hold a group. "
        "Set shards to 64 or less."
    ),
    ("schedule.type=sync", "rollout.workers.chunk_groups=9"): (
        "rollout.workers.chunk_groups = 9 is above learner.groups_per_batch = 8 with schedule.type = sync: the prompts "
        "of the next batch wait for weights that this batch trains. Set chunk_groups to 8 or less."
    ),
    ("schedule.max_staleness_steps=3", "learner.updates_per_batch=2", "schedule.publish_every_batches=2"): (
        "schedule.max_staleness_steps = 3 is below learner.updates_per_batch * schedule.publish_every_batches = "
        "2 * 2 = 4: the learner takes that many optimiser steps between two publications, so that groups sampled "
        "meanwhile would be too old at the next one. Set max_staleness_steps to 4 or more, or use schedule.type = sync."
    ),
    ("learner.optimizer.warmup_steps=100",): (
        "learner.optimizer.warmup_steps = 100 is not below learner.max_batches * learner.updates_per_batch = 100 "
        "optimiser steps: the run would end before its peak learning rate. Set warmup_steps below 100."
    ),
    ("rollout.workers.min=9",): "rollout.workers.min = 9 is above rollout.workers.max = 8. Set max to 9 or more.",
    ("rollout.workers.initial=9",): (
        "rollout.workers.initial = 9 is above rollout.workers.max = 8. Set initial to a value from 1 to 8, or move max."
    ),
    ("rollout.workers.min=3",): (
        "rollout.workers.initial = 1 is below rollout.workers.min = 3. Set initial to a value from 3 to 8, or move min."
    ),
    ("learner.engine.backend=nccl",): (
        "learner.engine.backend = nccl needs a GPU, and learner.resources.gpus = 0. Set backend to auto, or gpus to 1."
    ),
    ("learner.engine.backend=nccl", "learner.ranks=2", "learner.resources.gpus=0.5"): (
        "learner.engine.backend = nccl with learner.resources.gpus = 0.5 and learner.ranks = 2: nccl refuses two ranks "
        "on one GPU, which a share below 1 allows. Set gpus to 1, or backend to auto."
    ),
    ("learner.engine.offload=cpu",): (
        "learner.engine.offload = cpu moves state off a GPU, and learner.resources.gpus = 0: everything is in CPU "
        "memory already. Set offload to none."
    ),
    ("learner.engine.offload=cpu", "learner.engine.zero_stage=0", "learner.resources.gpus=1"): (
        "learner.engine.offload = cpu needs optimiser state that ZeRO has partitioned, and learner.engine.zero_stage "
        "= 0. Set zero_stage to 1, 2 or 3, or offload to none."
    ),
    ("learner.resources.gpus=2",): (
        "learner.resources.gpus = 2: one actor drives one GPU, so that the others would idle. "
        "Set learner.resources.gpus to 1 or a fraction and raise learner.ranks."
    ),
    ("evaluation.resources.custom.GPU=1",): (
        "evaluation.resources.custom.GPU = 1: GPU is Ray's own resource. "
        "Use evaluation.resources.cpus or evaluation.resources.gpus, or another name."
    ),
    ("evaluation.grid_size=65",): (
        "evaluation.grid_size = 65 is above evaluation.num_prompts = 64: the grid shows the first evaluated pictures. "
        "Set grid_size to 64 or less."
    ),
    ("checkpoint.best={metric: reward}",): (
        "checkpoint.best.metric = reward needs evaluations while the run trains, and evaluation.every_batches is "
        "unset. Set every_batches, or take checkpoint.best out."
    ),
    ("evaluation.measures=[judge]", "model.pretrained=mine"): (
        "evaluation.measures holds judge, which reads the pictures of the miniature only, and model.pretrained = mine. "
        "Take judge out, or set model.pretrained to miniature."
    ),
    ("model.trainable=full", "model.lora.rank=8"): (
        "model.lora.rank = 8 with model.trainable = full: every weight of the network is trained, and there is no "
        "adapter that it could describe. Set model.lora to {}, or model.trainable to lora."
    ),
    ("model.trainable=full", "model.init_lora=old"): (
        "model.init_lora = old and model.init_lora_mode = adapter with model.trainable = full: there is no adapter to "
        "start in. Set init_lora_mode to merged, which adds it to the network before training."
    ),
    ("model.trainable=full", "model.dtype=float16"): (
        "model.dtype = float16 with model.trainable = full: gradients of the whole network underflow in float16 "
        "without loss scaling, which there is none of here. Set dtype to bfloat16 or float32."
    ),
}

ALLOWED = [
    ("noise.num_steps=500",),
    ("noise.num_steps=30",),  # 1000 % 30 leaves out the ten highest timesteps, no more
    ("noise.num_steps=7",),
    ("rollout.sampler.block_length=16",),
    ("rollout.sampler.kappa=0",),  # the last step's target is 0
    ("rollout.sampler.kappa=701", "rollout.sampler.min_timestep=701"),
    ("rollout.sampler.threshold={low: 0.3, high: 0.3}",),
    ("learner.ranks=8",),
    ("queue.capacity_groups=8",),
    ("schedule.type=async", "rollout.workers.chunk_groups=9"),
    ("schedule.max_staleness_steps=4", "learner.updates_per_batch=2", "schedule.publish_every_batches=2"),
    ("schedule.type=sync", "learner.updates_per_batch=64"),
    ("learner.optimizer.warmup_steps=99",),
    ("rollout.workers.initial=8",),
    ("learner.engine.backend=nccl", "learner.ranks=1", "learner.resources.gpus=0.5"),
    ("learner.engine.backend=nccl", "learner.ranks=2", "learner.resources.gpus=1"),
    ("learner.engine.offload=cpu", "learner.engine.zero_stage=3", "learner.resources.gpus=1"),
    ("evaluation.measures=[judge]",),
    ("model.trainable=full", "model.lora={}", "model.init_lora=old", "model.init_lora_mode=merged"),
]

CAUTIONS = {
    ("model.lora.dropout=0.1",): [
        "model.lora.dropout = 0.1: sampler and learner no longer agree on log-probabilities, since only the learner "
        "drops. The papers use 0."
    ],
    ("queue.capacity_groups=1000",): [
        "queue.capacity_groups = 1000 holds 125 optimiser steps' worth of groups and schedule.max_staleness_steps = "
        "16: when rollouts are faster than the learner, groups grow too old while they wait and are dropped."
    ],
    ("model.pretrained=mine", "prompts.source=p.txt", "evaluation.prompts=e.txt"): [
        "rollout.scorer.clip = miniature with model.pretrained = mine: the bundled one knows only the miniature's "
        "pictures of shapes. Name your own."
    ],
    ("noise.guidance_scale=1", "noise.negative_prompt=ugly"): [
        "noise.guidance_scale = 1 switches guidance off, so that noise.negative_prompt = 'ugly' has no effect."
    ],
    (): [],
}


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS.items(), ids=lambda value: " ".join(value)[:60])
def test_a_contradiction_is_refused(refused: Refused, overrides: tuple[str, ...], message: str) -> None:
    assert refused("run: {name: a}", *overrides) == f"mine.yaml with overrides: {message}"


@pytest.mark.parametrize("overrides", ALLOWED, ids=" ".join)
def test_what_lies_just_inside_is_allowed(load: Load, overrides: tuple[str, ...]) -> None:
    load("run: {name: a}", *overrides)


def test_several_contradictions_are_said_at_once(refused: Refused) -> None:
    lines = refused("learner: {ranks: 3}\nqueue: {capacity_groups: 4}").split("\n")
    assert [line.split(" = ")[0] for line in lines] == [
        "mine.yaml: learner.groups_per_batch",
        "mine.yaml: queue.capacity_groups",
    ]


@pytest.mark.parametrize(("overrides", "sentences"), CAUTIONS.items(), ids=lambda value: " ".join(value)[:60])
def test_what_is_hardly_meant_is_said_and_allowed(load: Load, overrides: tuple[str, ...], sentences: list[str]) -> None:
    assert cautions(load("run: {name: a}", *overrides)) == sentences


def test_twenty_steps_are_the_papers() -> None:
    targets = step_targets(20)
    assert targets[:5] == [901, 851, 801, 751, 701]
    assert targets[-2:] == [1, 0]
    assert len(candidate_targets(20, 750, 0)) == 16


@pytest.mark.parametrize("num_steps", [2, 7, 20, 30, 50, 500])
@pytest.mark.parametrize(("kappa", "low"), [(750, 0), (1000, 0), (0, 0), (600, 300)])
def test_the_sampler_walks_the_steps_that_were_checked(num_steps: int, kappa: int, low: int) -> None:
    config = {"prediction_type": "epsilon"}
    scheduler = SimpleNamespace(alphas_cumprod=torch.linspace(0.999, 0.005, 1000), config=_Config(config))
    schedule = NoiseSchedule.from_scheduler(scheduler, num_steps)
    assert schedule.next_timestep(schedule.timesteps).tolist() == step_targets(num_steps)
    _, blocks = plan_blocks(schedule, kappa, low, 1)
    walked = [int(schedule.next_timestep(torch.tensor(step))) for block in blocks for step in block]
    assert walked == candidate_targets(num_steps, kappa, low)


class _Config(dict[str, str]):
    """A scheduler's configuration: attributes and `get`, as in diffusers."""

    prediction_type = "epsilon"
