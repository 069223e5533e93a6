"""The evaluator: the same prompts and seeds at one version of the adapter, scored and measured picture by picture.

    main ── evaluate(None) ───────────────► base ───┐
    main ── evaluate(adapter, sha256) ──► adapted ──┴─► EvalResult: means ─► eval/ tags, pictures ─► contact sheet

The reward in use scores finished pictures at timestep 0; the measures (rollout/measures.py) only measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from torch import Tensor

from reward import build_scorer
from reward.base import Scorer
from rollout.actors import NAMESPACE, actor_name, compute_options
from rollout.adapter import adapter_checksum, deserialise_adapter
from rollout.assets import MINIATURE
from rollout.measures import MEASURES, Interval, Measure, paired_difference
from rollout.memory import peak_memory_bytes
from rollout.policy import DiffusionPolicy, load_policy
from rollout.prompts import load_prompts
from rollout.sampling import sample_latents

if TYPE_CHECKING:
    from configs.learner import EvaluationSection
    from configs.schema import AtelierConfig

REWARD = "reward"  # the metric of the scorer in use, beside those that the measures name


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation found."""

    metrics: dict[str, float]
    """`reward` and the measures, each the mean over pictures."""
    per_picture: dict[str, list[float]]
    """The same names, one value a picture."""
    images: np.ndarray
    """uint8 [N, h, w, 3]"""
    prompts: tuple[str, ...]

    def scalars(self) -> dict[str, float]:
        """The metrics as TensorBoard tags."""
        return {f"eval/{name}": value for name, value in self.metrics.items()}


def differences(before: EvalResult, after: EvalResult) -> dict[str, Interval]:
    """after - before of every metric, paired picture by picture, with its 95 % interval."""
    return {name: paired_difference(before.per_picture[name], after.per_picture[name]) for name in before.metrics}


@torch.no_grad()
def evaluate(
    policy: DiffusionPolicy,
    scorer: Scorer,
    prompts: Sequence[str],
    seeds: Sequence[int],
    measures: Sequence[Measure],
    batch_size: int,
) -> EvalResult:
    """Sample a picture for each prompt and seed, score it and measure it.

    Raises ValueError when prompts and seeds differ in number, FloatingPointError for a score or measure that is not
    finite, naming it and the prompt.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed a prompt, and at least one")
    values: dict[str, list[float]] = {}
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), batch_size):
        texts = list(prompts[start : start + batch_size])
        latents = sample_latents(policy, policy.encode(texts), seeds[start : start + batch_size])
        pictures = policy.decode(latents)
        for name, found in _measured(scorer, measures, latents, pictures, texts).items():
            values.setdefault(name, []).extend(found)
        images.append(to_uint8(pictures))
    means = {name: math.fsum(found) / len(found) for name, found in values.items()}
    return EvalResult(means, values, np.concatenate(images), tuple(prompts))


def to_uint8(pictures: Tensor) -> np.ndarray:
    """uint8 [N, h, w, 3] of pictures float32 [N, 3, h, w] in [-1, 1]."""
    return ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()


def _measured(
    scorer: Scorer, measures: Sequence[Measure], latents: Tensor, pictures: Tensor, prompts: list[str]
) -> dict[str, list[float]]:
    clean = torch.zeros(len(prompts), dtype=torch.int64, device=pictures.device)
    found = {REWARD: scorer.score(latents if scorer.reads == "latent" else pictures, prompts, clean)}
    for measure in measures:
        found.update(measure(pictures.cpu(), prompts))
    for name, value in found.items():
        if not bool(torch.isfinite(value).all()):
            row = int((~torch.isfinite(value)).nonzero()[0])
            raise FloatingPointError(f"evaluation: {name} is {float(value[row])} for prompt {prompts[row]!r}")
    return {name: value.tolist() for name, value in found.items()}


class Evaluator:
    """Policy and scorer, loaded once. A plain class; `create_evaluator` wraps it for Ray."""

    def __init__(self, config: AtelierConfig) -> None:
        """Raises ValueError where prompts, model or scorer cannot be read as the configuration says."""
        settings = config.evaluation
        torch.set_num_threads(max(1, int(settings.resources.cpus)))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._settings = settings
        self._prompts = evaluation_prompts(settings)
        self._policy = load_policy(config.model, config.noise, device, seed=config.run.seed)
        self._scorer = build_scorer(config.rollout.scorer, device)
        self._measures = [MEASURES[name]() for name in settings.measures]

    def evaluate(self, adapter: bytes | None, sha256: str | None = None) -> EvalResult:
        """Evaluate the adapter (`serialise_adapter` bytes), or the base where it is None.

        `sha256` is the published `adapter_checksum`. Raises ValueError when the bytes are damaged, made for another
        model, or do not match it.
        """
        if adapter is None:
            with self._policy.reference():
                return self._evaluate()
        state = deserialise_adapter(adapter)
        self._policy.load_adapter(state, adapter_checksum(state) if sha256 is None else sha256)
        return self._evaluate()

    def peak_memory_bytes(self) -> int:
        """Most memory held so far: of the GPU where there is one, else of this process."""
        return peak_memory_bytes(self._policy.device)

    def _evaluate(self) -> EvalResult:
        seeds = range(self._settings.seed, self._settings.seed + len(self._prompts))
        return evaluate(self._policy, self._scorer, self._prompts, seeds, self._measures, self._settings.batch_size)


def evaluation_prompts(settings: EvaluationSection) -> tuple[str, ...]:
    """The first `num_prompts` held-out prompts. Raises ValueError when there are fewer."""
    source = f"{MINIATURE}-heldout" if settings.prompts == MINIATURE else settings.prompts
    prompts = load_prompts(source, settings.num_prompts)
    if len(prompts) < settings.num_prompts:
        raise ValueError(
            f"evaluation.num_prompts is {settings.num_prompts}, but evaluation.prompts = {settings.prompts!r} "
            f"has {len(prompts)}; ask for fewer or give a longer list"
        )
    return prompts


def create_evaluator(config: AtelierConfig) -> Any:
    """The evaluator as a named Ray actor with the resources of `evaluation.resources`.

    When its process dies, Ray starts it again and repeats the evaluation, at most twice.
    """
    options = compute_options(config.evaluation.resources)
    name = actor_name("evaluator", config.run.name)
    return (
        ray.remote(Evaluator)
        .options(name=name, namespace=NAMESPACE, max_restarts=2, max_task_retries=2, **options)
        .remote(config)
    )
