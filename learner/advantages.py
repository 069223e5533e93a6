"""Advantages of DDPO's trajectories by running statistics of each prompt (arXiv:2305.13301 and its released code).

    advantage = (reward - mean) / (std + 1e-6)       over the prompt's latest `history` rewards, this batch's included

A prompt that comes for the first time has its own group's rewards alone, so that its statistics are the group's. The
rewards of a batch are gathered from all ranks and taken in the order of ordinals: every rank holds the same ones,
whatever the number of ranks. They are part of the checkpoint. Shapes: R = K N rows, K trajectories, N steps.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from rollout.array_bytes import read_arrays, read_metadata
from rollout.trajectory_records import TrajectoryGroup

STD_FLOOR = 1e-6
"""Added to the deviation, as in the released code."""


class PromptRewards:
    """The latest rewards of every prompt. The same on all ranks."""

    def __init__(self, history: int) -> None:
        """`history`: rewards kept of each prompt (`learner.objective.prompt_history`)."""
        self._history = history
        self._rewards: dict[str, deque[float]] = {}

    def normalise(self, groups: Sequence[Any]) -> list[Any]:
        """This rank's `TrajectoryGroup`s of a batch with advantages by the running statistics. Collective."""
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        own = [(group.ordinal, group.prompt, group.scores[0].tolist()) for group in groups]
        torch.distributed.all_gather_object(everyone, own)
        for _, prompt, rewards in sorted(entry for part in everyone for entry in part):
            self.add(prompt, rewards)
        return [replace(group, advantage=self._rows(group)) for group in groups]

    def add(self, prompt: str, rewards: Sequence[float]) -> None:
        """Take in the rewards of one group."""
        self._rewards.setdefault(prompt, deque(maxlen=self._history)).extend(rewards)

    def advantages(self, prompt: str, rewards: Sequence[float]) -> list[float]:
        """Of `rewards`, which were taken in before."""
        known = np.array(self._rewards[prompt], dtype=np.float64)
        mean, deviation = known.mean(), known.std() + STD_FLOOR
        return [float((reward - mean) / deviation) for reward in rewards]

    def _rows(self, group: TrajectoryGroup) -> torch.Tensor:
        """float32 [R]: each trajectory's advantage, for every one of its steps."""
        each = torch.tensor(self.advantages(group.prompt, group.scores[0].tolist()), dtype=torch.float32)
        return each.repeat_interleave(group.num_pairs // len(each))

    def state_dict(self) -> bytes:
        """Everything, as safetensors: rewards one after the other, how many each prompt has, and the prompts."""
        counts = np.array([len(kept) for kept in self._rewards.values()], dtype=np.int64)
        flat = np.array([reward for kept in self._rewards.values() for reward in kept], dtype=np.float64)
        return save({"rewards": flat, "counts": counts}, {"prompts": json.dumps(list(self._rewards))})

    def load_state_dict(self, state: bytes) -> None:
        """Inverse of `state_dict`."""
        arrays: Mapping[str, np.ndarray] = read_arrays(state)
        prompts = json.loads(read_metadata(state)["prompts"])
        ends = np.cumsum(arrays["counts"])
        parts = np.split(arrays["rewards"], ends[:-1]) if prompts else []
        self._rewards = {
            prompt: deque(part.tolist(), maxlen=self._history) for prompt, part in zip(prompts, parts, strict=True)
        }
