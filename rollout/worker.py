"""A rollout worker: weights, chunk of prompts, groups, queue; once more. A plain class without Ray.

mailbox ── fetch, between chunks only ──► load, verify ──► sample the chunk ──► put each group ──► queue
                                                                                (held while it is full)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from rollout.adapter import adapter_checksum, deserialise_adapter
from rollout.groups import Group
from rollout.interfaces import ChunkReport, GroupSampler, GroupSink, WeightSource
from rollout.memory import peak_memory_bytes
from rollout.policy import load_policy
from rollout.prompts import PromptItem
from rollout.samplers import build_sampler
from rollout.weights import AdapterVersion

if TYPE_CHECKING:
    from configs.schema import AtelierConfig


class WeightsHolder(Protocol):
    """What a worker needs of the policy."""

    def adapter_state(self) -> dict[str, Tensor]: ...

    def load_adapter(self, state: dict[str, Tensor], checksum: str) -> None: ...


class RolloutWorker:
    """One worker. `run_chunk` is called from one thread; `describe` and `adapter_sha256` from any."""

    def __init__(
        self,
        worker_id: str,
        policy: WeightsHolder,
        sampler: GroupSampler,
        mailbox: WeightSource,
        queue: GroupSink,
        *,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], int] = peak_memory_bytes,
    ) -> None:
        self._id = worker_id
        self._policy = policy
        self._sampler = sampler
        self._mailbox = mailbox
        self._queue = queue
        self._clock = clock
        self._memory = memory
        self._weights_lock = threading.Lock()
        self._version: AdapterVersion | None = None
        self._action = ("loaded, no chunk yet", clock())

    def run_chunk(self, items: Sequence[PromptItem], required_batch: int | None) -> ChunkReport:
        """Roll `items` out at the current weights and deliver them.

        Under sync the weights must be those of `required_batch`; otherwise the report is empty. Raises ValueError or
        RuntimeError when weights cannot be applied, and whatever sampling raises (FloatingPointError: bad score).
        """
        version = self._refresh_weights()
        if version is None or required_batch not in (None, version.batch):
            self._note(f"weights of another batch than {required_batch}")
            return ChunkReport(self._id, version)
        counters = self._sampler.counters
        evaluations, candidates = counters.network_evaluations, counters.scored_candidates
        started = self._clock()
        self._note(f"sampling {_span(items)} at step {version.step}")
        groups = self._sample(items, version)
        sampled = self._clock()
        answers = self._deliver(groups)
        self._note(f"delivered {_span(items)} of step {version.step}")
        return ChunkReport(
            worker=self._id,
            version=version,
            delivered=sum(answer.startswith(("stored", "duplicate", "dropped")) for answer in answers),
            superseded=tuple(answer for answer in answers if answer.startswith("superseded")),
            refused=tuple(answer for answer in answers if answer.startswith("refused")),
            closed=any(answer.startswith("closed") for answer in answers),
            network_evaluations=counters.network_evaluations - evaluations,
            scored_candidates=counters.scored_candidates - candidates,
            sampling_sec=sampled - started,
            putting_sec=self._clock() - sampled,
            peak_memory_bytes=self._memory(),
        )

    def describe(self) -> str:
        """What it does now and since when."""
        action, since = self._action
        return f"{action}, for {self._clock() - since:.0f} s"

    def adapter_sha256(self) -> str:
        """Checksum recomputed from the live network; never seen half loaded."""
        with self._weights_lock:
            return adapter_checksum(self._policy.adapter_state())

    def _sample(self, items: Sequence[PromptItem], version: AdapterVersion) -> Sequence[Group]:
        try:
            return self._sampler.sample(items, policy_step=version.step, adapter_sha256=version.sha256, worker=self._id)
        except FloatingPointError as error:  # whose, so that it can be rolled out again alone
            named = [item for item in items if repr(item.prompt) in str(error)] or items
            whose = ", ".join(f"ordinal {item.ordinal} with seed {item.seed}" for item in named)
            raise FloatingPointError(f"step {version.step}: {error} ({whose})") from error

    def _refresh_weights(self) -> AdapterVersion | None:
        self._note("asking for weights")
        if (newer := self._mailbox.fetch(self._version)) is not None:
            version, data = newer
            self._note(f"loading weights of step {version.step}")
            with self._weights_lock:
                self._policy.load_adapter(deserialise_adapter(data), version.sha256)
                self._version = version
        return self._version

    def _deliver(self, groups: Sequence[Group]) -> list[str]:
        answers = []
        for group in groups:
            payload = group.to_bytes()
            self._note(f"putting group {group.ordinal} of step {group.policy_step}")
            answers.append(self._queue.put(payload, group.header(len(payload))))
        return answers

    def _note(self, action: str) -> None:
        self._action = (action, self._clock())


def _span(items: Sequence[PromptItem]) -> str:
    return f"ordinals {items[0].ordinal}..{items[-1].ordinal}"


def build_worker(config: AtelierConfig, worker_id: str, mailbox: WeightSource, queue: GroupSink) -> RolloutWorker:
    """Load policy and sampler into this process, on its GPU when the workers ask for one."""
    resources = config.rollout.workers.resources
    torch.set_num_threads(max(1, int(resources.cpus)))
    device = "cuda" if resources.gpus and torch.cuda.is_available() else "cpu"
    reference = config.learner.reference_side == "worker"
    policy = load_policy(config.model, config.noise, device, seed=config.run.seed, reference=reference)
    policy.max_batch = config.rollout.workers.max_batch
    sampler = build_sampler(config, policy, device)
    memory = partial(peak_memory_bytes, policy.device)
    return RolloutWorker(worker_id, policy, sampler, mailbox, queue, memory=memory)
