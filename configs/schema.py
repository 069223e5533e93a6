"""The whole configuration: one typed tree, checked at load, free of torch.

AtelierConfig ─ run · model · noise · data · prompts · rollout · queue · schedule · learner · checkpoint · evaluation
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from configs.base import Section
from configs.checks import problems
from configs.data import Data, OnlineData
from configs.learner import (
    AsyncSchedule,
    CheckpointSection,
    EvaluationSection,
    LearnerSection,
    Schedule,
)
from configs.model import ModelSection, NoiseSection
from configs.rollout import PromptsSection, QueueSection, RolloutSection


class RunSection(Section):
    """The run's name, place and seed."""

    name: str = Field("quickstart", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run."""
    dir: Path | None = Field(None, strict=False)
    """Run directory. Unset: runs/<name>. On a cluster it must be storage that every learner node shares."""
    seed: int = Field(0, ge=0)
    """Seed of everything random: prompts' order, noise, adapter initialisation."""

    @property
    def path(self) -> Path:
        return self.dir if self.dir is not None else Path("runs") / self.name


class AtelierConfig(Section):
    """Everything one run needs to know."""

    run: RunSection = RunSection()
    """Name, place and seed."""
    model: ModelSection = ModelSection()
    """The diffusion model."""
    noise: NoiseSection = NoiseSection()
    """The stochastic denoising step."""
    data: Data = OnlineData()
    """Where training examples come from: rollouts, or a data set on disk."""
    prompts: PromptsSection = PromptsSection()
    """Training prompts."""
    rollout: RolloutSection = RolloutSection()
    """The rollout side."""
    queue: QueueSection = QueueSection()
    """The replay queue."""
    schedule: Schedule = AsyncSchedule()
    """How rollout and learner take turns."""
    learner: LearnerSection = LearnerSection()
    """The learner side."""
    checkpoint: CheckpointSection = CheckpointSection()
    """Checkpoints."""
    evaluation: EvaluationSection = EvaluationSection()
    """Evaluation."""

    @model_validator(mode="after")
    def _consistent(self) -> AtelierConfig:
        if found := problems(self):
            raise ValueError("\n".join(found))
        return self
