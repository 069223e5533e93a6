"""The objectives, one file each; `OBJECTIVES` is the one place where a configured type meets its function."""

from learner.objectives.spo import spo_loss

OBJECTIVES = {"spo": spo_loss}

__all__ = ["OBJECTIVES", "spo_loss"]
