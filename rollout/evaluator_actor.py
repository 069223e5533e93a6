"""The evaluator as a Ray actor: a thin wrapper, so that whoever holds its handle needs no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from rollout.actors import NAMESPACE, actor_name, compute_options

if TYPE_CHECKING:
    from configs.schema import AtelierConfig
    from rollout.eval_result import EvalResult


class EvaluatorActor:
    """`rollout.evaluator.Evaluator` in a process of its own; raises what that one raises."""

    def __init__(self, config: AtelierConfig) -> None:
        from rollout.evaluator import Evaluator  # here: the processes that create or call this actor have no torch

        self._evaluator, self._grid_size = Evaluator(config), config.evaluation.grid_size

    def evaluate(self, adapter: bytes | None, sha256: str | None = None) -> EvalResult:
        return self._evaluator.evaluate(adapter, sha256)

    def report(self, adapter: bytes | None, sha256: str | None = None) -> tuple[EvalResult, bytes]:
        """What telemetry keeps of `evaluate`: the result without its pictures, and a PNG grid of the first of them."""
        result = self._evaluator.evaluate(adapter, sha256)
        return replace(result, images=result.images[:0]), result.grid(self._grid_size)

    def peak_memory_bytes(self) -> int:
        return self._evaluator.peak_memory_bytes()


def create_evaluator(config: AtelierConfig) -> Any:
    """The evaluator as a named Ray actor with the resources of `evaluation.resources`.

    When its process dies, Ray starts it again and repeats the evaluation, each at most twice.
    """
    options = compute_options(config.evaluation.resources)
    name = actor_name("evaluator", config.run.name)
    return (
        ray.remote(EvaluatorActor)
        .options(name=name, namespace=NAMESPACE, max_restarts=-1, max_task_retries=2, **options)
        .remote(config)
    )
