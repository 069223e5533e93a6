"""The objectives, one file each; `OBJECTIVES` is the one place where a configured type meets its function.

Each is pure and takes one float a row: log-probabilities of transitions, or errors of pictures that were reduced
before. Which of the two, and from which groups, is the reader's business (`learner.readers`).
"""

from learner.objectives.d3po import d3po_loss
from learner.objectives.ddpo import ddpo_loss
from learner.objectives.dpo import dpo_loss
from learner.objectives.mapo import mapo_loss
from learner.objectives.sft import sft_loss
from learner.objectives.simpo import simpo_loss
from learner.objectives.spo import spo_loss

OBJECTIVES = {
    "spo": spo_loss,
    "simpo": simpo_loss,
    "dpo": dpo_loss,
    "sft": sft_loss,
    "mapo": mapo_loss,
    "ddpo": ddpo_loss,
    "d3po": d3po_loss,
}

__all__ = [
    "OBJECTIVES",
    "d3po_loss",
    "ddpo_loss",
    "dpo_loss",
    "mapo_loss",
    "sft_loss",
    "simpo_loss",
    "spo_loss",
]
