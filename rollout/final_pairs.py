"""Pairs of finished pictures: k pictures of each prompt, the best and the worst of them (pixel paper, section 4.2).

    prompt ─► k seeds ─► k whole samplings ─► decode ─► scorers ─► fewest flaws, then the mixture ─► (z_win, z_lose)

The scorers' scales differ, so each one's scores are standardised over the prompt's k pictures before they are added.
Shapes: B prompts, K pictures a prompt, S scorers, C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.rollout import FinalPairsSampler as FinalPairsSettings
from reward.base import Scorer
from rollout.conditioning import Conditioning
from rollout.final_records import FinalGroup
from rollout.policy import DiffusionPolicy
from rollout.prompts import PromptItem
from rollout.sampler_base import PolicySampler, Stamp, shared_fields
from rollout.sampling import picture_seed, sample_latents
from rollout.scoring import score_finished


@dataclass(frozen=True)
class Weighted:
    """A scorer in a mixture."""

    scorer: Scorer
    weight: float


@dataclass(frozen=True)
class Ranking:
    """How the best and the worst picture of a prompt are found."""

    mixture: Sequence[Weighted]
    flaws: Scorer | None = None
    """Higher: fewer flaws. Comes before the mixture."""
    flaw_tolerance: float = 0.0
    """Flaw scores no further apart than this count as equal."""
    min_margin: float = 0.0
    """Least difference of the mixture's standardised scores, where the flaws do not tell the two apart."""

    @property
    def scorers(self) -> list[Scorer]:
        """All of them, the flaw scorer last."""
        return [part.scorer for part in self.mixture] + ([] if self.flaws is None else [self.flaws])

    def appeal(self, scores: Tensor) -> Tensor:
        """The mixture [K] of scores [S, K]: each scorer's standardised over K (0 where all are equal), then added."""
        rows = scores[: len(self.mixture)].double()
        spread = rows.std(1, correction=0, keepdim=True)
        standard = torch.where(spread > 0, (rows - rows.mean(1, keepdim=True)) / spread.clamp(min=1e-12), 0.0)
        weights = torch.tensor([part.weight for part in self.mixture], dtype=torch.float64)
        return (weights[:, None] * standard).sum(0)

    def choose(self, scores: Tensor) -> tuple[int, int] | None:
        """(win, lose) from scores [S, K]; None where nothing tells two pictures apart.

        With a flaw scorer the winner is the most appealing of the pictures with the fewest flaws, and the loser the
        least appealing of those with the most: fewest flaws win where flaws and appeal disagree.
        """
        appeal = self.appeal(scores)
        best = worst = torch.ones_like(appeal, dtype=torch.bool)
        if self.flaws is not None:
            clean = scores[-1].double()
            best = clean >= clean.max() - self.flaw_tolerance
            worst = clean <= clean.min() + self.flaw_tolerance
        win = int(appeal.masked_fill(~best, -torch.inf).argmax())
        lose = int(appeal.masked_fill(~worst, torch.inf).argmin())
        flaws_differ = self.flaws is not None and float(scores[-1, win] - scores[-1, lose]) > self.flaw_tolerance
        if win == lose or not (flaws_differ or float(appeal[win] - appeal[lose]) > self.min_margin):
            return None
        return win, lose


class FinalPairsSampler(PolicySampler):
    """Samples finished pictures and keeps the pair that the ranking tells apart. No Ray inside."""

    def __init__(self, policy: DiffusionPolicy, ranking: Ranking, settings: FinalPairsSettings) -> None:
        super().__init__(policy)
        self._ranking = ranking
        self._settings = settings

    @torch.no_grad()
    def sample(
        self, items: Sequence[PromptItem], *, policy_step: int, adapter_sha256: str, worker: str
    ) -> list[FinalGroup]:
        """One group for each prompt, with one pair or none; each depends on its own prompt, seed and the policy."""
        k = self._settings.num_images
        conditioning = self._policy.encode([item.prompt for item in items])
        z = self._latents(items, conditioning, k)
        texts = [item.prompt for item in items for _ in range(k)]
        scores = torch.stack([score_finished(self._policy, scorer, z, texts) for scorer in self._ranking.scorers])
        self.counters.scored_candidates += scores.numel()
        tables = scores.unflatten(1, (len(items), k))  # [S, B, K]
        latents = z.unflatten(0, (len(items), k)).cpu()
        stamp = Stamp(policy_step, adapter_sha256, worker)
        return [
            self._group(item, stamp, latents[row], tables[:, row], conditioning, row) for row, item in enumerate(items)
        ]

    def _latents(self, items: Sequence[PromptItem], conditioning: Conditioning, k: int) -> Tensor:
        seeds = [picture_seed(item.seed, number) for item in items for number in range(k)]
        self.counters.network_evaluations += len(seeds) * len(self._policy.schedule.timesteps)
        return sample_latents(self._policy, conditioning.repeat(k), seeds)

    def _group(
        self, item: PromptItem, stamp: Stamp, z: Tensor, scores: Tensor, conditioning: Conditioning, row: int
    ) -> FinalGroup:
        chosen = self._ranking.choose(scores)
        if chosen is not None and torch.equal(z[chosen[0]], z[chosen[1]]):
            chosen = None
        win, lose = ([], []) if chosen is None else ([chosen[0]], [chosen[1]])
        appeal = self._ranking.appeal(scores).float()
        return FinalGroup(
            **shared_fields(item, stamp, conditioning, row),
            z_win=z[win],
            z_lose=z[lose],
            score_win=appeal[win],
            score_lose=appeal[lose],
            scores=scores,
            final_score=float(scores[0].mean()),
        )
