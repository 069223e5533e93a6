"""What the learner does: objective, optimiser, engine, schedule, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Section
from configs.objectives import REFERENCES, Objective, SpoObjective
from configs.rollout import ResourcesSection
from configs.scorers import ScorerSection

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSection(Section):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(6e-5, gt=0)
    """Peak learning rate (SD-1.5: 6e-5; SDXL: 1e-5)."""
    betas: tuple[Share, Share] = Field((0.9, 0.999), strict=False)
    """AdamW's betas, each at least 0 and below 1."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this global norm."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after warm-up, down to `final_lr_ratio` at the last step."""
    final_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""


class EngineSection(Section):
    """DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage; 3 only where the frozen base does not fit on one device."""
    offload: Literal["none", "cpu"] = "none"
    """Where optimiser state (and parameters under ZeRO-3) live. `cpu` needs a C++ compiler and ninja on the ranks'
    nodes: DeepSpeed compiles its CPU Adam there at the first start, in about a minute."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """Collectives; `auto` is nccl where every rank has its own GPU, else gloo."""
    timeout_sec: float = Field(120.0, gt=0)
    """A collective that waits longer than this fails: a rank is gone."""


class LearnerSection(Section):
    """The learner ranks."""

    ranks: int = Field(1, ge=1)
    """Data-parallel ranks (Ray Train workers)."""
    resources: ResourcesSection = ResourcesSection()
    """What each rank asks for."""
    objective: Objective = SpoObjective()
    """The loss."""
    optimizer: OptimizerSection = OptimizerSection()
    """The optimiser."""
    engine: EngineSection = EngineSection()
    """DeepSpeed's settings."""
    max_batches: int = Field(100, ge=1)
    """Global batches to train on; the run then ends."""
    groups_per_batch: int = Field(8, ge=1)
    """Preference groups (prompts) in one global batch, over all ranks."""
    updates_per_batch: int = Field(1, ge=1)
    """Optimiser steps made of one global batch (the paper's loop makes one per denoising step)."""
    micro_batch_pairs: int = Field(16, ge=1)
    """Pairs in one forward and backward pass of one rank; more are accumulated."""
    reference_at: Literal["worker", "learner"] | None = None
    """Who evaluates the reference. Unset: the worker for step-wise losses, which has the base in memory anyway; the
    learner for `dpo`, where the noise is drawn; nobody for a loss without reference."""
    max_nonfinite_batches: int = Field(3, ge=1)
    """The run stops after this many updates with a non-finite loss or gradient."""

    @property
    def reference_side(self) -> Literal["worker", "learner"] | None:
        """Who evaluates the reference of this objective; None where the loss has none."""
        possible = REFERENCES[self.objective.type]
        return self.reference_at or (possible[0] if possible else None)


class SyncSchedule(Section):
    """The paper's loop: all prompts of a batch at one version, all their pairs trained, publish, repeat."""

    type: Literal["sync"] = "sync"


class AsyncSchedule(Section):
    """Rollout and learner overlap; groups may be a bounded number of optimiser steps old."""

    type: Literal["async"] = "async"
    max_staleness_steps: int = Field(16, ge=1)
    """Groups sampled more than this many optimiser steps ago are dropped and counted (paper's own loop: about 15)."""
    publish_every_batches: int = Field(1, ge=1)
    """Global batches between two publications of the trained weights."""


Schedule = Annotated[SyncSchedule | AsyncSchedule, Field(discriminator="type")]


class BestSection(Section):
    """Which evaluated weights are kept in run.dir/best, whatever `checkpoint.keep` removes."""

    metric: str = "reward"
    """A metric of the evaluation, without `eval/`: `reward`, or one that a measure gives."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of it is better."""


class CheckpointSection(Section):
    """Checkpoints of the learner, the queue, the cursor and the telemetry together."""

    every_batches: int = Field(25, ge=1)
    """Global batches between two checkpoints; the last batch is always saved."""
    keep: int = Field(2, ge=1)
    """Committed checkpoints kept."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the learner group after a lost rank before the run fails."""
    best: BestSection | None = None
    """Keep the best weights by an evaluation metric apart. Unset: none is kept apart."""


class EvaluationSection(Section):
    """Fixed prompts and seeds, measured before, during and after training."""

    prompts: str = "miniature"
    """Held-out prompts: a file, or `miniature` for the bundled list."""
    num_prompts: int = Field(64, ge=1)
    """The first this many of them."""
    every_batches: int | None = Field(None, ge=1)
    """Global batches between evaluations. Unset: only before and after."""
    max_waiting: int = Field(2, ge=1)
    """Evaluations that may wait while one runs; when there is one more, the oldest is skipped (`eval/skipped`)."""
    seed: int = 20_000
    """Seed of the first prompt's noise; the n-th uses seed + n."""
    batch_size: int = Field(16, ge=1)
    """Pictures sampled together."""
    grid_size: int = Field(16, ge=1)
    """Pictures in the image grid."""
    measures: list[Literal["judge"]] = []
    """Held-out measures beside the reward in use; `judge` reads the miniature's pictures."""
    scorers: list[ScorerSection] = []
    """Held-out scorers, reported under their full names; one that the model is trained for is refused."""
    pictures_per_prompt: int = Field(1, ge=1)
    """Seeds of each prompt; from 2 on, diversity within prompts is reported too."""
    embedding: str = "pixels"
    """What diversity compares: `pixels` (8x8 colours, no model), or directory or hub id of a CLIP in HF's format."""
    stop_on_drift: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Largest change of a statistic from the starting model, {appearance/saturation: 20}; beyond it the run stops."""
    resources: ResourcesSection = ResourcesSection()
    """What the evaluator asks for."""
