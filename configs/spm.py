"""The configuration of `python -m learner.train_spm`: one typed tree, checked at load, free of torch.

SpmConfig ─ run · base · scorer · data · labels · training · validation · checkpoint
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.base import Section
from configs.learner import EngineSection, OptimizerSection
from configs.rollout import ResourcesSection
from configs.schema import RunSection


class SpmRunSection(RunSection):
    """The run's name, place and seed."""

    name: str = Field("spm", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run."""


class SpmOptimizerSection(OptimizerSection):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(3e-6, gt=0)
    """Peak learning rate (paper: 3e-6 for SD-1.5, 1e-6 for SDXL)."""
    weight_decay: float = Field(0.3, ge=0)
    """AdamW's decoupled weight decay (paper: 0.3)."""


class BaseModelSection(Section):
    """The frozen diffusion model whose predicted pictures the preference model learns to read."""

    family: Literal["sd", "sdxl", "pixart"] = "sd"
    """Which family the checkpoint belongs to: `sd` (Stable Diffusion 1.x, 2.x), `sdxl`, `pixart`."""
    pretrained: str = "miniature"
    """Local directory or hub id of a diffusers pipeline; `miniature` is the model in this repository."""
    vae: str | None = None
    """Directory or hub id of an autoencoder in place of the pipeline's own (SDXL: one that works in float16)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the frozen model; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    image_size: int | None = Field(None, ge=8)
    """Height and width that pictures are brought to, in pixels. Unset: the size the model was trained at."""
    guidance_scale: float = Field(5.0, ge=1)
    """Classifier-free guidance of the prediction (paper: 5, as in sampling)."""
    negative_prompt: str = ""
    """What guidance pushes away from."""


class SpmScorerSection(Section):
    """The preference model that is trained."""

    clip: str = "miniature"
    """Directory or hub id of the CLIP model to start from; `miniature` is the one in this repository."""
    checkpoint: str | None = None
    """Step-aware weights to go on from. Unset: the CLIP's own, which a new step-aware model equals exactly."""
    gradient_checkpointing: bool = False
    """Recompute vision blocks in the backward pass: less memory, about a third more time."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Precision of forward and backward passes; weights and optimiser stay float32."""
    ablation: Literal["none", "no_time", "plain"] = "none"
    """`no_time` reads every picture as if it were clean (t = 0); `plain` trains nothing and measures the start."""


class PairDataSection(Section):
    """Pairs of pictures with a preference; docs/spm.md says in which forms."""

    source: str = "pairs"
    """Folder with pairs.jsonl, parquet file, directory of parquet files, or with `split` a hub id."""
    split: str | None = None
    """Split of a hub data set, which is then streamed. Unset: `source` is a path."""
    where: dict[str, list[str]] = {}
    """Taste: column to the values that are kept, for instance {annotator: [kim]}."""
    only_different: bool = True
    """Leave out rows with `are_different` false."""
    held_out: float = Field(0.02, ge=0, lt=1)
    """Share of the captions that is kept for validation; used where `validation.source` is unset."""
    window_blocks: int = Field(4, ge=1)
    """Row groups of parquet files that are shuffled together and kept in memory."""


class LabelsSection(Section):
    """Which picture of a pair counts as preferred."""

    by: Literal["data", "scorer"] = "data"
    """`data`: the annotators; `scorer`: the starting preference model on the clean pair (paper: for SDXL)."""
    tie_margin: float = Field(0.1, ge=0, lt=1)
    """With `scorer`: a tie where the two probabilities differ by this or less (paper: 0.1)."""


class AugmentationSection(Section):
    """Changes of the pictures that are trained on, at random and each of a pair on its own, where no label depends on
    them. Off by default, as in the papers; validation never has them."""

    contrast: float = Field(0.0, ge=0, lt=1)
    """Contrast about a picture's mean colour is multiplied by 1 plus or minus at most this."""
    noise: dict[Annotated[int, Field(ge=1)], Annotated[float, Field(ge=0)]] = {}
    """Cells of a grid a side to the largest standard deviation of smooth colour noise (pictures in [-1, 1]): one cell
    tints the whole picture, as many as pixels are grain; for instance {1: 0.08, 64: 0.04}."""


class TrainingSection(Section):
    """Optimisation."""

    ranks: int = Field(1, ge=1)
    """Data-parallel ranks (Ray Train workers)."""
    resources: ResourcesSection = ResourcesSection()
    """What each rank asks for."""
    optimizer: SpmOptimizerSection = SpmOptimizerSection()
    """The optimiser."""
    engine: EngineSection = EngineSection()
    """DeepSpeed's settings."""
    max_steps: int = Field(8000, ge=1)
    """Optimiser steps (paper: 8000 for SD-1.5, 7000 for SDXL)."""
    micro_batch_pairs: int = Field(16, ge=1)
    """Pairs in one forward and backward pass of one rank."""
    accumulation: int = Field(16, ge=1)
    """Passes of one optimiser step; a global batch is ranks * micro_batch_pairs * accumulation pairs."""
    augmentation: AugmentationSection = AugmentationSection()
    """Against a model that reads what the labels do not mean, such as a tint."""
    max_nonfinite_steps: int = Field(3, ge=1)
    """The run stops after this many steps with a non-finite loss or gradient."""


class SpmValidationSection(Section):
    """Accuracy on pairs that are not trained on."""

    source: str | None = None
    """Pairs of their own, as `data.source`. Unset: the captions that `data.held_out` keeps."""
    split: str | None = None
    """As `data.split`, for `validation.source`."""
    num_pairs: int = Field(500, ge=1)
    """The first this many, in an order given by the seed."""
    every_steps: int = Field(500, ge=1)
    """Optimiser steps between two measurements; the start and the end are always measured."""
    timesteps: list[Annotated[int, Field(ge=0, lt=1000)]] = Field([0, 251, 501, 701, 951], min_length=1)
    """Where accuracy is measured (method: 0, 251, 501, 701, 951)."""


class SpmCheckpointSection(Section):
    """Checkpoints."""

    every_steps: int = Field(500, ge=1)
    """Optimiser steps between two checkpoints; the last step is always saved."""
    keep: int = Field(2, ge=1)
    """Committed checkpoints kept."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the ranks after a lost one before the run fails."""


class SpmConfig(Section):
    """Everything that training a step-aware preference model needs to know."""

    run: SpmRunSection = SpmRunSection()
    """Name, place and seed."""
    base: BaseModelSection = BaseModelSection()
    """The frozen diffusion model."""
    scorer: SpmScorerSection = SpmScorerSection()
    """The preference model."""
    data: PairDataSection = PairDataSection()
    """The pairs."""
    labels: LabelsSection = LabelsSection()
    """What counts as preferred."""
    training: TrainingSection = TrainingSection()
    """Optimisation."""
    validation: SpmValidationSection = SpmValidationSection()
    """Validation."""
    checkpoint: SpmCheckpointSection = SpmCheckpointSection()
    """Checkpoints."""

    @model_validator(mode="after")
    def _consistent(self) -> SpmConfig:
        if found := list(_problems(self)):
            raise ValueError("\n".join(found))
        return self

    @property
    def output(self) -> Path:
        """Where the trained model is written."""
        return self.run.path / "spm"


def _problems(config: SpmConfig) -> Iterator[str]:
    training = config.training
    if training.engine.zero_stage == 3:
        yield (
            "training.engine.zero_stage = 3: the preference model fits on one device, and its blocks are called one by "
            "one, which ZeRO-3 cannot follow. Set zero_stage to 0, 1 or 2."
        )
    if training.optimizer.warmup_steps >= training.max_steps:
        yield (
            f"training.optimizer.warmup_steps = {training.optimizer.warmup_steps} is not below training.max_steps = "
            f"{training.max_steps}: the run would end before its peak learning rate. Set warmup_steps below "
            f"{training.max_steps}."
        )
    if training.engine.backend == "nccl" and training.resources.gpus == 0:
        yield (
            "training.engine.backend = nccl needs a GPU, and training.resources.gpus = 0. "
            "Set backend to auto, or gpus to 1."
        )
    if training.engine.offload == "cpu" and (training.engine.zero_stage == 0 or training.resources.gpus == 0):
        yield (
            f"training.engine.offload = cpu needs training.engine.zero_stage 1 or 2 and training.resources.gpus above "
            f"0, and they are {training.engine.zero_stage} and {training.resources.gpus:g}. Set offload to none."
        )
    if training.resources.gpus > 1:
        yield (
            f"training.resources.gpus = {training.resources.gpus:g}: one rank drives one GPU. "
            f"Set gpus to 1 or a fraction and raise training.ranks."
        )
    if config.validation.source is None and config.data.held_out == 0:
        yield (
            "data.held_out = 0 with validation.source = null: no pair would be left to validate on. "
            "Set held_out above 0, or validation.source."
        )
    if config.validation.source is None and config.validation.split is not None:
        yield (
            f"validation.split = {config.validation.split} with validation.source = null: a split belongs to a hub "
            f"data set. Set validation.source to it (it may be data.source's)."
        )
    if len(set(config.validation.timesteps)) < len(config.validation.timesteps):
        yield f"validation.timesteps = {config.validation.timesteps} holds one timestep twice. Name each once."
