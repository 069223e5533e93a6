"""What each objective reads. `READERS` is the one place where an objective meets its kind of group."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from learner.readers.base import Batch, Losses, Reader, Setting
from learner.readers.final_latents import FinalLatentReader
from learner.readers.step_pairs import StepPairReader
from learner.readers.trajectories import TrajectoryReader

READERS: dict[str, Callable[[Setting], Reader]] = {
    "spo": StepPairReader,
    "d3po": StepPairReader,
    "simpo": partial(FinalLatentReader, halves=2),
    "dpo": partial(FinalLatentReader, halves=2),
    "mapo": partial(FinalLatentReader, halves=2),
    "sft": partial(FinalLatentReader, halves=1),
    "ddpo": TrajectoryReader,
}
"""`learner.objective.type` -> what turns groups into its losses."""


def build_reader(setting: Setting) -> Reader:
    """The reader of the configured objective."""
    return READERS[setting.settings.objective.type](setting)


__all__ = ["READERS", "Batch", "Losses", "Reader", "Setting", "build_reader"]
