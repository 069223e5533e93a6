"""What an objective reads, as the updater sees it: rows from groups, and one loss a row.

    groups, (group, pair) indices ─ collate ─► batch ─ evaluate ─► network ─► objective ─► losses, metrics

Shapes: M rows of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from configs.learner import LearnerSection
from configs.objectives import PixelSection, pixel_of
from learner.batching import PairIndex
from learner.objectives import OBJECTIVES
from rollout.decoder import PixelDecoder
from rollout.policy import DiffusionPolicy

LossFunction = Callable[..., tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Losses:
    """What a forward pass gave."""

    losses: Tensor
    """float32 [M]"""
    metrics: dict[str, Tensor]
    """Each float [M]."""
    anchor: Tensor
    """float32 [M]: what the losses were made of; a NaN put into it reaches every trained weight."""


class Batch(Protocol):
    """What every kind of batch has."""

    @property
    def weight(self) -> Tensor:
        """float32 [M]: 1, or 0 for padding."""

    @property
    def timestep(self) -> Tensor:
        """int64 [M]"""

    @property
    def sources(self) -> tuple[str, ...]:
        """Prompt and seed of each row, for messages."""


class Reader(Protocol):
    """One kind of reading."""

    def collate(self, groups: Sequence[Any], pairs: Sequence[PairIndex], step: int) -> Any:
        """The rows of `pairs` at optimiser step `step`; a padding row where there is none."""

    def evaluate(self, batch: Any, network: nn.Module) -> Losses:
        """Losses through `network` (the engine), with gradients."""


@dataclass(frozen=True)
class Setting:
    """What a reader works with."""

    policy: DiffusionPolicy
    settings: LearnerSection
    seed: int
    """The run's."""
    decoder: PixelDecoder | None = None
    """Given exactly when the objective has a pixel term in force."""

    @property
    def objective(self) -> LossFunction:
        """The configured loss with its constants filled in."""
        chosen = self.settings.objective
        constants = chosen.model_dump(exclude={"type", "pixel", "reduction", "prompt_history"})
        function: LossFunction = OBJECTIVES[chosen.type]  # type: ignore[assignment]
        return lambda *inputs: function(*inputs, **constants)

    @property
    def pixel(self) -> PixelSection | None:
        """The pixel term in force. Raises ValueError without a decoder to compute it with."""
        pixel = pixel_of(self.settings.objective)
        if pixel is not None and self.decoder is None:
            raise ValueError("learner.objective.pixel is in force, but the learner has no decoder")
        return pixel


def refuse_other_groups(groups: Sequence[Any], kind: type, objective: str) -> None:
    """Raise ValueError naming the first group that this objective cannot read."""
    for group in groups:
        if not isinstance(group, kind):
            raise ValueError(
                f"group {group.ordinal} of {group.worker} is a {type(group).__name__}; learner.objective.type = "
                f"{objective} reads {kind.__name__}. Check which source feeds this run."
            )
