"""A whole run in one process, without Ray: the real queue, mailbox and sampler, driven in turn with the learner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from configs.schema import AtelierConfig
from reward import Scorer
from rollout.adapter import deserialise_adapter
from rollout.groups import Group, read_group
from rollout.policy import load_policy
from rollout.prompts import PromptStream
from rollout.replay import ReplayQueue
from rollout.samplers import build_sampler
from rollout.weights import AdapterVersion, WeightMailbox
from tests.fakes import RedScorer

PROMPTS = ("a red disc", "a blue ring", "a green cross", "a black star", "a white square")


def small_config(
    pipeline: Path,
    run_dir: Path,
    *,
    sampler: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    **learner: Any,
) -> AtelierConfig:
    """Two groups a batch, two updates, four denoising steps, sync.

    `sampler` replaces the step-wise one, `model` adds to the model's settings.
    """
    settings = {"groups_per_batch": 2, "updates_per_batch": 2, "micro_batch_pairs": 2, "max_batches": 4, **learner}
    return AtelierConfig.model_validate(
        {
            "run": {"name": "small", "dir": str(run_dir)},
            "model": {"pretrained": str(pipeline), **(model or {})},
            "noise": {"num_steps": 5, "guidance_scale": 2.0},
            "rollout": {
                "sampler": {"num_candidates": 2, "threshold": 0.0} if sampler is None else dict(sampler),
                "workers": {"chunk_groups": 2},
            },
            "schedule": {"type": "sync"},
            "learner": {"optimizer": {"lr": 1e-3}, **settings},
            "checkpoint": {"every_batches": 2},
        }
    )


class Telemetry:
    """Keeps what the loop reports."""

    def __init__(self) -> None:
        self.lines: dict[int, dict[str, float]] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.setdefault(step, {}).update(values)

    def resume_at(self, step: int) -> None:
        self.lines = {at: line for at, line in self.lines.items() if at <= step}


class Mailbox:
    """The real mailbox; publishing loads the rollout policy."""

    def __init__(self, directory: Path) -> None:
        self.actor = WeightMailbox(directory, store=lambda data: data)
        self.published: list[AdapterVersion] = []

    def latest_version(self) -> AdapterVersion | None:
        return self.actor.version

    def latest_payload(self) -> list[bytes]:
        """The newest adapter's bytes, in a list; empty before the first publish."""
        latest = asyncio.run(self.actor.latest())
        return [] if latest is None else latest[1]

    def publish(self, version: AdapterVersion, state: bytes) -> None:
        asyncio.run(self.actor.publish(version, state))
        self.published.append(version)


class Rollout:
    """The real queue; asking for a batch samples what it lacks, with the weights in the mailbox."""

    def __init__(
        self,
        config: AtelierConfig,
        mailbox: Mailbox,
        scorer_from: Callable[..., Scorer] = lambda *_: RedScorer(),
        *,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._mailbox = mailbox
        self._config = config
        self._per_batch = config.learner.groups_per_batch
        self.policy = load_policy(config.model, config.noise, "cpu", seed=config.run.seed)
        self.policy.max_batch = config.rollout.workers.max_batch
        self._sampler = build_sampler(config, self.policy, "cpu", scorer_from=scorer_from)
        self._stream = PromptStream(prompts, config.run.seed)
        self.queue = ReplayQueue(config.queue, config.schedule, self._per_batch, versions=mailbox.actor)
        self.before_take: Callable[[int], None] = lambda batch: None
        self.tamper: Callable[[Group], Group] = lambda group: group

    def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None:
        self.before_take(batch)
        self._produce(range(batch * self._per_batch, (batch + 1) * self._per_batch))
        payloads = self._run(self.queue.take(batch, rank, world, learner_step))
        if payloads is None:
            return None
        return [self.tamper(read_group(payload)).to_bytes() for payload in payloads]

    def _produce(self, ordinals: range) -> None:
        latest = self._run(self._mailbox.actor.latest())
        assert latest is not None, "the first publish comes before the first take"
        version, (data,) = latest
        self.policy.load_adapter(deserialise_adapter(data), version.sha256)
        groups = self._sampler.sample(
            [self._stream.item(ordinal) for ordinal in ordinals],
            policy_step=version.step,
            adapter_sha256=version.sha256,
            worker="in-process",
        )
        for group in groups:
            payload = group.to_bytes()
            answer = self._run(self.queue.put(payload, group.header(len(payload))))
            assert answer == "stored" or answer.startswith("closed"), answer

    def expect(self, latent_shape: tuple[int, int, int]) -> None:
        self._run(self.queue.expect(latent_shape))

    def retire(self, batch: int) -> None:
        self._run(self.queue.retire(batch))

    def stats(self) -> Mapping[str, Any]:
        return self._run(self.queue.stats())

    def state_dict(self) -> bytes:
        return self._run(self.queue.state_dict())

    def load_state_dict(self, state: bytes | None) -> None:
        self._run(self.queue.load_state_dict(state))

    def close(self, reason: str) -> None:
        self._run(self.queue.close(reason))

    def _run(self, coroutine: Any) -> Any:
        return self._loop.run_until_complete(coroutine)


def single_process_group(directory: Path) -> None:
    """A gloo group of one rank, unless there is one; computes on one thread, as a rank and a worker with one CPU do."""
    torch.set_num_threads(1)
    if not torch.distributed.is_initialized():
        store = directory / "process-group"
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
