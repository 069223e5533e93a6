"""Scoring finished latents. Shapes: M rows, C H W latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reward.base import Scorer
from rollout.policy import DiffusionPolicy


def score_finished(policy: DiffusionPolicy, scorer: Scorer, latents: Tensor, texts: Sequence[str]) -> Tensor:
    """float32 [M] on the CPU of finished latents [M, C, H, W] at timestep 0, in calls of at most `policy.max_batch`.

    Raises FloatingPointError, naming scorer and prompt, for a score that is not finite.
    """
    readable = policy.decode(latents) if scorer.reads == "pixels" else latents
    t = torch.zeros(len(latents), dtype=torch.int64, device=policy.device)
    size = policy.max_batch or len(latents)
    starts = range(0, len(latents), size)
    parts = [scorer.score(readable[s : s + size], texts[s : s + size], t[s : s + size]).float() for s in starts]
    scores = torch.cat(parts).cpu()
    if not bool(torch.isfinite(scores).all()):
        row = int((~torch.isfinite(scores)).nonzero()[0])
        raise FloatingPointError(f"{scorer.name} gave a non-finite score at t = 0: {texts[row]!r}")
    return scores
