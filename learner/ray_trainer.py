"""Ray Train's trainer as runs use it. It reads its settings when it is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.train import UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from learner.lost_ranks import note_loss
from learner.ranks import root_cause


class NotedLosses(UserCallback):
    """In the controller: ranks that were lost are noted in the run directory, where the driver reads of them."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        note_loss(self._run_dir, {rank: root_cause(error) for rank, error in worker_exceptions.items()})


class RankTrainer(TorchTrainer):
    """Ranks that live as long as their controller, which Ray itself sees to.

    Ray Train's cleaner asks the dashboard every second whether the controller lives, and ends the ranks where that does
    not know of it. A local run's cluster has no dashboard, and the address where it would be may be another cluster's:
    a run beside other clusters lost its ranks while its controller lived. What the cleaner is for, a killed
    controller, needs none: Ray ends the ranks with it, and their placement group with the driver, which fails then.
    """

    def _create_default_callbacks(self):  # type: ignore[no-untyped-def]  # as Ray has it
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
