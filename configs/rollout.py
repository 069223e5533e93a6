"""What the rollout side does: prompts, sampling, reward, workers, queue."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from configs.base import Section
from configs.objectives import with_default_type
from configs.scorers import ScorerSection, StepAwareScorer


class ResourcesSection(Section):
    """What one actor of a role asks Ray for."""

    cpus: float = Field(1.0, ge=0)
    """CPUs of each actor; fractions let roles share a core."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each actor; fractions let roles share a card."""
    custom: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom Ray resources, for instance {rollout_node: 0.01}, to pin a role to a node group."""


class SigmaThreshold(Section):
    """A pair threshold that rises linearly with the step's noise level sigma (arXiv:2502.01051)."""

    low: float = Field(ge=0, lt=1)
    """Threshold at the smallest sigma of the schedule."""
    high: float = Field(ge=0, lt=1)
    """Threshold at the largest sigma of the schedule."""


class StepwiseSampler(Section):
    """Step-wise candidates: SPO with a block of one transition, MSPO with a longer one."""

    type: Literal["stepwise"] = "stepwise"
    num_candidates: int = Field(4, ge=2)
    """k, candidates drawn from one Gaussian (released settings: 4 for SD-1.5, 2 for SDXL)."""
    kappa: int = Field(750, ge=0, le=1000)
    """Candidates are drawn once a step's target timestep is at or below this (paper: 750)."""
    min_timestep: int = Field(0, ge=0, le=1000)
    """No candidates for steps whose target is below this timestep (the paper's range ablation; 0 is the method)."""
    block_length: int = Field(1, ge=1)
    """n, transitions a branch walks alone before it is scored: 1 is SPO, 4 the paper's MSPO for SDXL."""
    pair_rule: Literal["best_worst", "random"] = "best_worst"
    """Which two candidates make the pair; `random` is the paper's ablation."""
    threshold: Annotated[float, Field(ge=0, lt=1)] | SigmaThreshold = 0.3
    """A pair is kept when softmax(s_win, s_lose) differs by more than this, 0 to 1 (SD-1.5: 0.3; SDXL: 0.4)."""
    continuation: Literal["random", "win", "lose"] = "random"
    """Which candidate the next step starts from; `win` and `lose` are the paper's ablations."""


class WeightedScorer(Section):
    """One more scorer in a mixture."""

    scorer: ScorerSection = StepAwareScorer()
    """The scorer."""
    weight: float = Field(1.0, gt=0)
    """Its weight; `rollout.scorer` has weight 1."""


class FinalPairsSampler(Section):
    """Finished pictures of one prompt, the best and the worst of which make a pair."""

    type: Literal["final_pairs"] = "final_pairs"
    num_images: int = Field(5, ge=2)
    """Pictures a prompt (pixel paper: 5)."""
    mixture: list[WeightedScorer] = []
    """More scorers. Each one's scores are standardised over the prompt's pictures, then added by weight."""
    flaws: ScorerSection | None = None
    """A scorer of flaws (higher: fewer). Where it and the mixture disagree, fewest flaws win (pixel paper)."""
    flaw_tolerance: float = Field(0.0, ge=0)
    """Pictures whose flaw scores differ by no more than this count as equally flawed."""
    min_margin: float = Field(0.0, ge=0)
    """A pair is kept when the mixture's standardised scores differ by more than this, or the flaws do."""


class TrajectorySampler(Section):
    """Whole trajectories with the reward of the finished picture: what DDPO and D3PO read."""

    type: Literal["trajectory"] = "trajectory"
    num_trajectories: int = Field(4, ge=2)
    """Trajectories a prompt: DDPO normalises rewards over them, D3PO takes the best and the worst."""


Sampler = Annotated[
    StepwiseSampler | FinalPairsSampler | TrajectorySampler,
    Field(discriminator="type"),
    BeforeValidator(with_default_type("stepwise")),
]


class PromptsSection(Section):
    """The endless, seeded stream of training prompts."""

    source: str = "miniature"
    """A .txt, .json or .jsonl file; `miniature` is the bundled list."""
    limit: int | None = Field(None, ge=1)
    """Use the first this many prompts only."""


class WorkersSection(Section):
    """The elastic pool of rollout workers."""

    initial: int = Field(1, ge=1)
    """Workers started with the job."""
    min: int = Field(1, ge=1)
    """The pool never shrinks below this by itself."""
    max: int = Field(8, ge=1)
    """The pool never grows beyond this; `python -m rollout.scale` refuses more."""
    autoscale: bool = False
    """Grow while the queue is near empty and shrink while it is full, between min and max."""
    resources: ResourcesSection = ResourcesSection()
    """What each worker asks for."""
    chunk_groups: int = Field(4, ge=1)
    """Prompts that a worker rolls out together (its batch); their candidates run batched."""
    max_batch: int = Field(64, ge=1)
    """Most latents in one network, decoder or scorer call; smaller fits smaller GPUs."""
    max_errors: int = Field(3, ge=1)
    """The run ends after this many errors (not deaths) on one chunk, for instance non-finite scores, or in loading."""
    stall_timeout_sec: float = Field(300.0, gt=0)
    """With no worker alive or no group produced for this long, the run ends with what each worker last did."""


class QueueSection(Section):
    """The bounded replay queue between rollout and learner."""

    capacity_groups: int = Field(64, ge=1)
    """Most groups waiting; producers are held beyond it."""
    capacity_bytes: int = Field(2 * 1024**3, ge=1)
    """Most bytes waiting; producers are held beyond it."""
    shards: int = Field(1, ge=1)
    """Actors that the payloads are spread over."""


class RolloutSection(Section):
    """Everything on the rollout side."""

    sampler: Sampler = StepwiseSampler()
    """How prompts become training groups: step by step, as finished pairs, or as whole trajectories."""
    scorer: ScorerSection = StepAwareScorer()
    """What scores the candidates: the reward in use."""
    workers: WorkersSection = WorkersSection()
    """The workers."""
