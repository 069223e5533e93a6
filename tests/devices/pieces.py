"""What is meant for a GPU, run on the CPU and on the emulated device: rollout, evaluation, scorers, training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from configs.load import load_config
from configs.schema import AtelierConfig
from learner.loop import train
from learner.preference.train import train_preference
from reward import build_scorer
from reward.diversity import build_embedder
from rollout.assets import MINIATURE_PIPELINE
from rollout.drift import picture_statistics
from rollout.evaluator import evaluate
from rollout.measures import MEASURES
from rollout.policy import load_policy
from rollout.prompts import PromptItem
from rollout.samplers import build_sampler
from tests.benchmarks import scorers
from tests.devices import emulated
from tests.learner.inprocess import Mailbox, Rollout, Telemetry, single_process_group, small_config
from tests.learner.preference.pairs import render_folder, spm_config

PROMPT = "a small red circle on the left on a white background"
SAMPLERS: dict[str, tuple[dict[str, Any], str]] = {
    "spo": ({"type": "stepwise", "threshold": 0.0}, "spo"),
    "mspo": ({"type": "stepwise", "threshold": 0.0, "block_length": 2}, "spo"),
    "trajectory": ({"type": "trajectory", "num_trajectories": 3}, "ddpo"),
    "final_pairs": ({"type": "final_pairs"}, "dpo"),
}
"""Name -> sampler, and an objective that takes its groups."""


class Accelerator(CPU_Accelerator):
    """DeepSpeed's view of the emulated device."""

    def device_name(self, device_index: int | None = None) -> str:
        return emulated.NAME if device_index is None else f"{emulated.NAME}:{device_index}"

    def current_device(self) -> int:
        return 0

    def current_device_name(self) -> str:
        return self.device_name(0)

    def device_count(self) -> int:
        return 1


def quickstart(sampler: dict[str, Any], objective: str) -> AtelierConfig:
    """The quickstart with two denoising steps."""
    values = load_config("quickstart").model_dump()
    values["noise"]["num_steps"] = 2
    values["rollout"]["sampler"], values["learner"]["objective"] = sampler, {"type": objective}
    return AtelierConfig.model_validate(values)


def rolled_out(name: str, device: torch.device) -> list[float]:
    """Size of every tensor of a group, as the learner would read it."""
    config = quickstart(*SAMPLERS[name])
    sampler = build_sampler(config, load_policy(config.model, config.noise, device, seed=1), device)
    (group,) = sampler.sample([PromptItem(0, PROMPT, 0)], policy_step=0, adapter_sha256="0" * 64, worker="one")
    assert group.to_bytes()
    found = [getattr(group, field.name) for field in fields(group)]
    return [float(value.double().norm()) for value in found if isinstance(value, torch.Tensor)]


def evaluated(device: torch.device) -> list[float]:
    """Rewards and statistics of three pictures."""
    config = quickstart(*SAMPLERS["spo"])
    policy = load_policy(config.model, config.noise, device, seed=1)
    measures = [measure() for measure in MEASURES.values()]
    scorer = build_scorer(config.rollout.scorer, device)
    result = evaluate(policy, scorer, [PROMPT] * 3, range(3), measures, batch_size=2)
    statistics = picture_statistics(
        result.images, result.prompts, build_embedder(config.evaluation.embedding, device), 2
    )
    return [*(value for values in result.per_picture.values() for value in values), *statistics.values()]


def scored(device: torch.device) -> list[float]:
    """How far each published scorer, as a small model, is from the CPU."""
    found = scorers.run(device, tiny=True, batch=2, side=40, rounds=1)
    return [value["off_cpu"] for kind, value in found.items() if kind != "preparing"]


def trained(device: torch.device) -> list[float]:
    """Losses and gradient norms of two updates by DeepSpeed, decoder included. What is rolled out is the CPU's."""
    with tempfile.TemporaryDirectory() as folder:
        objective = {"type": "spo", "pixel": {"weight": 1.0}}
        config = small_config(
            MINIATURE_PIPELINE, Path(folder, "run"), objective=objective, engine={"zero_stage": 0}, max_batches=1
        )
        config.run.path.mkdir()
        mailbox, telemetry = Mailbox(config.run.path / "adapters"), Telemetry()
        train(0, 1, config, Rollout(config, mailbox), mailbox, telemetry, device=device)
    return [line[tag] for line in telemetry.lines.values() for tag in ("loss/total", "loss/grad_norm") if tag in line]


def preference_trained(device: torch.device) -> list[float]:
    """Losses of two steps of the preference model's training, labelled by a scorer."""
    with tempfile.TemporaryDirectory() as folder:
        source = render_folder(Path(folder, "pairs"), 24)
        training = {"engine": {"zero_stage": 0}}
        config = spm_config(source, Path(folder, "run"), labels={"by": "scorer"}, training=training)
        telemetry = Telemetry()
        train_preference(0, 1, config, telemetry, device=device)
    return [line["loss/total"] for line in telemetry.lines.values() if "loss/total" in line]


PIECES: dict[str, Callable[[torch.device], list[float]]] = {
    **{name: partial(rolled_out, name) for name in SAMPLERS},
    "evaluation": evaluated,
    "scorers": scored,
    "learner": trained,
    "preference model": preference_trained,
}


def run_all() -> dict[str, dict[str, list[float]]]:
    """Piece -> device type -> values. For a process of its own: the device stays."""
    torch.set_num_threads(1)
    device = emulated.set_up()  # autograd counts devices at its first backward pass
    found: dict[str, dict[str, list[float]]] = {name: {} for name in PIECES}
    with tempfile.TemporaryDirectory() as folder:
        single_process_group(Path(folder))
        for place in (torch.device("cpu"), device):
            if place == device:
                set_accelerator(Accelerator())
            for name, piece in PIECES.items():
                found[name][place.type] = piece(place)
    return found
