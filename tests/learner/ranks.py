"""Several gloo ranks in processes of their own, and groups that any number of ranks can train on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.schema import AtelierConfig
from learner.loop import train
from rollout.adapter import deserialise_adapter
from rollout.conditioning import Conditioning
from rollout.policy import DiffusionPolicy
from rollout.records import PreferenceGroup
from rollout.transition import transition
from rollout.weights import AdapterVersion
from tests.learner.inprocess import Telemetry
from tests.tiny import MAX_TOKENS

PATIENCE = timedelta(seconds=240)  # a rank that lost the other one ends before the test's own timeout


def run_ranks(world: int, folder: Path, body: Callable[..., Any], *args: Any) -> list[Any]:
    """`body(rank, world, *args)` in `world` processes with a gloo group; their results by rank."""
    torch.multiprocessing.spawn(_rank, args=(world, folder, body, args), nprocs=world, daemon=True)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, folder: Path, body: Callable[..., Any], args: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=PATIENCE)
    torch.save(body(rank, world, *args), folder / f"result-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def sampled_group(policy: DiffusionPolicy, ordinal: int, pairs: int, *, shared: bool = True) -> PreferenceGroup:
    """A group as the untrained policy would sample it: the candidates come from the Gaussians of its own means."""
    generator = torch.Generator().manual_seed(ordinal)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    latents = (pairs, *policy.latent_shape)
    timestep = policy.schedule.timesteps[torch.arange(pairs) % len(policy.schedule.timesteps)]
    conditioning = {name: noise(MAX_TOKENS, 32) for name in ("prompt_embeds", "negative_prompt_embeds")}
    halves = []
    for _ in range(1 if shared else 2):
        x_t = noise(*latents)
        rows = Conditioning.from_rows([conditioning] * max(1, pairs)).rows(slice(0, pairs))
        with torch.no_grad():
            output = policy.predict(x_t, timestep, rows) if pairs else x_t
        halves.append((x_t, transition(policy.schedule, output, x_t, timestep)))
    (x_win, win), (x_lose, lose) = halves[0], halves[-1]
    return PreferenceGroup(
        ordinal=ordinal,
        prompt=f"prompt {ordinal}",
        seed=ordinal,
        policy_step=0,
        adapter_sha256="0" * 64,
        worker="test",
        conditioning=conditioning,
        x_t=x_win,
        x_t_lose=None if shared else x_lose,
        x_prev_win=win.sample(noise(*latents)),
        x_prev_lose=lose.sample(noise(*latents)),
        timestep=timestep,
        ref_mean_win=win.mean,
        ref_mean_lose=None if shared else lose.mean,
        score_win=torch.ones(pairs),
        score_lose=torch.zeros(pairs),
        behaviour_logp_win=torch.zeros(pairs),
        behaviour_logp_lose=torch.zeros(pairs),
        scores=noise(5, 2),
        score_timesteps=torch.arange(5, dtype=torch.int64),
        final_score=0.0,
    )


class GivenBatches:
    """A queue that hands out the same groups to any number of ranks: batch b is `batches[b]`."""

    def __init__(self, batches: Sequence[Sequence[bytes]]) -> None:
        self._batches = batches

    def expect(self, latent_shape: tuple[int, int, int]) -> None: ...

    def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes]:
        size = len(self._batches[batch]) // world
        return list(self._batches[batch][rank * size : (rank + 1) * size])

    def retire(self, batch: int) -> None: ...

    def stats(self) -> Mapping[str, Any]:
        return {}

    def state_dict(self) -> bytes:
        return b""

    def load_state_dict(self, state: bytes | None) -> None: ...


class KeepAdapters:
    """A mailbox that keeps what is published."""

    def __init__(self) -> None:
        self.adapters: list[dict[str, Tensor]] = []

    def latest_version(self) -> AdapterVersion | None:
        return None

    def publish(self, version: AdapterVersion, state: bytes) -> None:
        self.adapters.append(deserialise_adapter(state))


def train_on(
    rank: int, world: int, config: AtelierConfig, batches: Sequence[Sequence[bytes]], resume_from: Path | None = None
) -> tuple[list[dict[str, Tensor]], dict[int, dict[str, float]]]:
    """Adapters that this rank published and what it reported; rank 0 has both, the others neither."""
    mailbox, telemetry = KeepAdapters(), Telemetry()
    device = torch.device("cpu")
    queue = GivenBatches(batches)
    train(rank, world, config, queue, mailbox, telemetry, device=device, resume_from=resume_from)
    return mailbox.adapters, telemetry.lines
