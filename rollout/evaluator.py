"""The evaluator: the same prompts and seeds at one version of the adapter, scored and measured picture by picture.

    main ── evaluate(None) ───────────────► base ───┐
    main ── evaluate(adapter, sha256) ──► adapted ──┴─► EvalResult: means ─► eval/ tags, pictures ─► contact sheet

The reward in use scores finished pictures at timestep 0; held-out scorers and measures (rollout/measures.py) only
measure. Appearance and diversity are reported as changes from the base (rollout/drift.py), which is evaluated first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reward import build_scorer
from reward.base import Scorer
from reward.diversity import build_embedder
from rollout.adapter import adapter_checksum, deserialise_adapter
from rollout.drift import changes, picture_statistics
from rollout.eval_result import REWARD, EvalResult
from rollout.measures import MEASURES, Measure
from rollout.memory import peak_memory_bytes
from rollout.policy import DiffusionPolicy, load_policy
from rollout.prompts import evaluation_prompts
from rollout.sampling import sample_latents

if TYPE_CHECKING:
    from configs.schema import AtelierConfig


@torch.no_grad()
def evaluate(
    policy: DiffusionPolicy,
    scorer: Scorer,
    prompts: Sequence[str],
    seeds: Sequence[int],
    measures: Sequence[Measure],
    batch_size: int,
    held_out: Sequence[Scorer] = (),
) -> EvalResult:
    """Sample a picture for each prompt and seed, score it and measure it.

    Held-out scorers are reported under their names.

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
        scorers = {REWARD: scorer, **{other.name: other for other in held_out}}
        for name, found in _measured(scorers, measures, latents, pictures, texts).items():
            values.setdefault(name, []).extend(found)
        images.append(to_uint8(pictures))
    means = {name: math.fsum(found) / len(found) for name, found in values.items()}
    return EvalResult(means, values, np.concatenate(images), tuple(prompts), scorer=scorer.name)


def to_uint8(pictures: Tensor) -> np.ndarray:
    """uint8 [N, h, w, 3] of pictures float32 [N, 3, h, w] in [-1, 1]."""
    return ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()


def _measured(
    scorers: Mapping[str, Scorer], measures: Sequence[Measure], latents: Tensor, pictures: Tensor, prompts: list[str]
) -> dict[str, list[float]]:
    clean = torch.zeros(len(prompts), dtype=torch.int64, device=pictures.device)
    found = {
        name: scorer.score(latents if scorer.reads == "latent" else pictures, prompts, clean)
        for name, scorer in scorers.items()
    }
    for measure in measures:
        found.update(measure(pictures.cpu(), prompts))
    for name, value in found.items():
        if not bool(torch.isfinite(value).all()):
            row = int((~torch.isfinite(value)).nonzero()[0])
            raise FloatingPointError(f"evaluation: {name} is {float(value[row])} for prompt {prompts[row]!r}")
    return {name: value.tolist() for name, value in found.items()}


class Evaluator:
    """Policy and scorer, loaded once. A plain class; rollout/evaluator_actor.py wraps it for Ray."""

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
        self._held_out = [build_scorer(section, device) for section in settings.scorers]
        names = [REWARD, self._scorer.name, *(scorer.name for scorer in self._held_out)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"evaluation.scorers: {twice} is there twice, or is what the model is trained for")
        self._embed = build_embedder(settings.embedding, device)
        self._base: dict[str, float] | None = None

    def evaluate(self, adapter: bytes | None, sha256: str | None = None) -> EvalResult:
        """Evaluate the adapter (`serialise_adapter` bytes), or the base where it is None.

        `sha256` is the published `adapter_checksum`. Raises ValueError when the bytes are damaged, made for another
        model, or do not match it.
        """
        if adapter is None or self._base is None:  # an actor that was restarted has forgotten the base
            with self._policy.reference():
                base = self._evaluate()
            self._base = base.statistics
            if adapter is None:
                return replace(base, drift=changes(base.statistics, base.statistics))
        state = deserialise_adapter(adapter)
        self._policy.load_adapter(state, adapter_checksum(state) if sha256 is None else sha256)
        result = self._evaluate()
        return replace(result, drift=changes(self._base, result.statistics))

    def peak_memory_bytes(self) -> int:
        """Most memory held so far: of the GPU where there is one, else of this process."""
        return peak_memory_bytes(self._policy.device)

    def _evaluate(self) -> EvalResult:
        settings, began = self._settings, time.monotonic()
        prompts = self._prompts * settings.pictures_per_prompt  # the first of every prompt, then the second, ...
        seeds = range(settings.seed, settings.seed + len(prompts))
        result = evaluate(
            self._policy, self._scorer, prompts, seeds, self._measures, settings.batch_size, self._held_out
        )
        found = picture_statistics(result.images, result.prompts, self._embed, settings.batch_size)
        return replace(result, statistics=found, seconds=time.monotonic() - began)
