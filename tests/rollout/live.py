"""A real rollout side on Ray, with tiny real models, and the learner's half of it played by the test."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from configs.schema import AtelierConfig
from rollout.adapter import adapter_checksum, serialise_adapter
from rollout.policy import load_policy
from rollout.pool_actor import PoolClient, create_pool
from rollout.records import PreferenceGroup
from rollout.replay_actor import QueueClient, create_queue
from rollout.replay_state import QueueState
from rollout.weights import AdapterVersion
from rollout.weights_actor import MailboxClient, create_mailbox
from tests.polling import until
from tests.tiny import tiny_pipeline
from tests.tiny_clip import write_clip

TIMEOUT_SEC = 240.0


def live_config(folder: Path, name: str, **sections: Any) -> AtelierConfig:
    """Two denoising steps, two candidates, two groups a batch; four workers fit into one CPU."""
    prompts = folder / "prompts.txt"
    prompts.write_text("a red disc\na blue ring\na green cross\n")
    settings: dict[str, Any] = {
        "run": {"name": name, "dir": str(folder / name)},
        "model": {"pretrained": str(folder / "pipeline")},
        "noise": {"num_steps": 2, "guidance_scale": 2.0},
        "prompts": {"source": str(prompts)},
        "rollout": {
            "sampler": {"num_candidates": 2, "threshold": 0.0},
            "scorer": {"clip": str(folder / "clip")},
            "workers": {"chunk_groups": 2, "max": 3, "resources": {"cpus": 0.25}},
        },
        "queue": {"capacity_groups": 8},
        "schedule": {"type": "async"},
        "learner": {"groups_per_batch": 2},
    }
    return AtelierConfig.model_validate({**settings, **sections})


def write_models(folder: Path) -> None:
    tiny_pipeline(folder / "pipeline")
    write_clip(folder / "clip", "small")


def kill(actor: Any) -> None:
    """kill -9 of the actor's process."""
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


class LiveRun:
    """Queue, mailbox and pool as a driver creates them; `publish` and `train` are what a learner would do."""

    def __init__(self, config: AtelierConfig) -> None:
        self.config = config
        mailbox = create_mailbox(config)
        queue = create_queue(config)
        self.mailbox, self.queue = MailboxClient(mailbox), QueueClient(queue)
        self.pool = PoolClient(create_pool(config))
        policy = load_policy(config.model, config.noise, "cpu", seed=config.run.seed)
        self._adapter = policy.adapter_state()
        self.queue.expect(policy.latent_shape)
        self.attempt = self.batch = 0
        self.trained: list[int] = []
        self.publish()

    def publish(self) -> AdapterVersion:
        state = {name: tensor + 0.01 * self.batch for name, tensor in self._adapter.items()}
        version = AdapterVersion(self.batch, self.batch, self.attempt, adapter_checksum(state))
        self.mailbox.publish(version, serialise_adapter(state))
        return version

    def train(self, batches: int, *, publish: bool = True) -> list[PreferenceGroup]:
        """Take, retire and publish."""
        groups = []
        for _ in range(batches):
            payloads = self.queue.take(self.batch, 0, 1, self.batch)
            assert payloads is not None
            groups += [PreferenceGroup.from_bytes(payload) for payload in payloads]
            self.queue.retire(self.batch)
            self.batch += 1
            if publish:
                self.publish()
        self.trained += [group.ordinal for group in groups]
        return groups

    def train_all_below(self, ordinal: int) -> list[PreferenceGroup]:
        """Train until the queue is done with every ordinal below `ordinal`: it was trained, or too old and counted.

        Fails where one does not come within many batches.
        """
        groups: list[PreferenceGroup] = []
        for _ in range(30):
            done = QueueState.from_bytes(self.queue.state_dict()).done
            if not (missing := [n for n in range(ordinal) if n not in done]):
                return groups
            groups += self.train(1)
        raise AssertionError(f"ordinals {missing} did not come: {self.queue.stats()}")

    def assert_books_close(self) -> dict[str, Any]:
        stats = self.queue.stats()
        assert stats["produced"] == stats["trained"] + sum(stats["dropped"].values()) + stats["queued"]
        assert len(self.trained) == len(set(self.trained))
        return stats

    def worker_pids(self) -> dict[str, int]:
        """Process of every live worker, by name."""
        described = self.pool.stats()["workers"]
        found = {name: re.search(r"pid (\d+) on", text) for name, text in described.items()}
        return {name: int(match[1]) for name, match in found.items() if match}

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask the pool until `condition(stats)`."""

        def met() -> dict[str, Any] | None:
            stats = self.pool.stats()
            assert stats["status"] == "running", stats
            return stats if condition(stats) else None

        found: dict[str, Any] = until(met, TIMEOUT_SEC, lambda: str(self.pool.stats()))
        return found

    def close(self) -> None:
        self.queue.close("the test is over")
        self.pool.stop(5)
        for client in (self.pool, self.queue, self.mailbox):
            ray.kill(client.actor)


@contextmanager
def live_run(folder: Path, name: str) -> Iterator[LiveRun]:
    """A run with models of its own."""
    write_models(folder)
    run = LiveRun(live_config(folder, name))
    yield run
    run.close()
