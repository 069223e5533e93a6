"""Step-wise candidates and pairs: SPO, and MSPO, which is the same walk with longer blocks (arXiv:2406.04314).

    noise ── plain steps while the target t' > kappa ──► x ──┬─ branch 1: n transitions ─► score ┐
                                                            ├─ branch ..                        ├► win/lose ► n pairs
                                                            └─ branch K                         ┘      │
                                                        x ◄── one branch continues (random) ◄──────────┘

The network evaluation that gives a candidate's x0 for scoring is the one that its next step would need, so the branch
that continues keeps it: one evaluation per candidate and step. Finished pictures are scored at timestep 0.
Shapes: B prompts, K candidates, n block length, C H W latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from configs.rollout import SigmaThreshold
from configs.rollout import StepwiseSampler as StepwiseSettings
from reward.base import Scorer
from rollout.conditioning import Conditioning
from rollout.pairs import Block, PairList, collect_pairs, column
from rollout.policy import DiffusionPolicy
from rollout.prompts import PromptItem
from rollout.records import PreferenceGroup
from rollout.sampler_base import PolicySampler, Stamp, shared_fields
from rollout.sampling import PromptNoise
from rollout.transition import NoiseSchedule, log_prob, predict_x0, transition


class StepwiseSampler(PolicySampler):
    """Rolls prompts out step by step and keeps the pairs that the scorer tells apart. No Ray inside."""

    def __init__(
        self, policy: DiffusionPolicy, scorer: Scorer, settings: StepwiseSettings, *, reference: bool = True
    ) -> None:
        """`reference`: also evaluate the frozen base at every kept pair (`learner.reference_at: worker`)."""
        super().__init__(policy)
        self._scorer = scorer
        self._settings = settings
        self._reference = reference

    @torch.no_grad()
    def sample(
        self, items: Sequence[PromptItem], *, policy_step: int, adapter_sha256: str, worker: str
    ) -> list[PreferenceGroup]:
        """One group for each prompt; each depends on its own prompt and seed and on the policy alone."""
        settings = self._settings
        prompts = [item.prompt for item in items]
        conditioning = self._policy.encode(prompts)
        noise = PromptNoise([item.seed for item in items], self._policy.latent_shape, self._policy.device)
        pairs = [PairList() for _ in items]
        scores: list[Tensor] = []
        scored_at: list[int] = []
        for block in self._walk(prompts, conditioning, noise):
            collect_pairs(block, settings.pair_rule, noise, pairs)
            scores.append(block.scores)
            scored_at.append(block.scored_at)
        table = torch.stack(scores, dim=1).float().cpu()  # [B, S, K]
        stamp = Stamp(policy_step, adapter_sha256, worker)
        return [
            self._group(item, stamp, pairs[row], conditioning, row, table[row], scored_at)
            for row, item in enumerate(items)
        ]

    def _walk(self, prompts: Sequence[str], conditioning: Conditioning, noise: PromptNoise) -> Iterator[Block]:
        policy, settings = self._policy, self._settings
        x = noise.draw()
        output: Tensor | None = None
        plain, blocks = plan_blocks(policy.schedule, settings.kappa, settings.min_timestep, settings.block_length)
        if not blocks:
            raise ValueError(
                f"no step draws candidates: rollout.sampler.kappa = {settings.kappa} and min_timestep = "
                f"{settings.min_timestep} leave out every target of this schedule's steps, the last of which leaves "
                f"timestep {int(policy.schedule.trained_timesteps[-1])}"
            )
        for step in plain:
            t = self._times(len(x), step)
            x = transition(policy.schedule, self._predict(x, t, conditioning), x, t).sample(noise.draw())
        for block_steps in blocks:
            block, last, last_output = self._branch(block_steps, x, output, prompts, conditioning, noise)
            yield block
            chosen = torch.tensor(self._continue_from(block.scores, noise), device=x.device)
            rows = torch.arange(len(x), device=x.device)
            x = last[rows, chosen]
            output = None if last_output is None else last_output[rows, chosen]

    def _branch(
        self,
        steps: list[int],
        x: Tensor,
        output: Tensor | None,
        prompts: Sequence[str],
        conditioning: Conditioning,
        noise: PromptNoise,
    ) -> tuple[Block, Tensor, Tensor | None]:
        """K branches of n transitions from x [B, C, H, W]; returns the block, their ends and the outputs there."""
        schedule, k = self._policy.schedule, self._settings.num_candidates
        batch = len(x)
        repeated = conditioning.repeat(k)
        times = self._times(batch, steps[0])
        if output is None:
            output = self._predict(x, times, conditioning)
        state = x.repeat_interleave(k, dim=0)  # [B*K, C, H, W]
        outputs = output.repeat_interleave(k, dim=0)
        x_t, x_prev, logp = [], [], []
        for step in steps:
            t = self._times(batch * k, step)
            if step != steps[0]:
                outputs = self._predict(state, t, repeated)
            move = transition(schedule, outputs, state, t)
            after = move.sample(noise.draw(k).flatten(0, 1))
            x_t.append(state.unflatten(0, (batch, k)))
            x_prev.append(after.unflatten(0, (batch, k)))
            logp.append(log_prob(after, move.mean, move.std).unflatten(0, (batch, k)))
            state = after
        scored_at = int(schedule.next_timestep(torch.tensor(steps[-1])))
        scores, next_outputs = self._score(state, scored_at, prompts, repeated)
        block = Block(
            timesteps=steps,
            x_t=x_t,
            x_prev=x_prev,
            logp=logp,
            scores=scores.unflatten(0, (batch, k)),
            scored_at=scored_at,
            threshold=self._threshold(steps[-1]),
        )
        kept = None if next_outputs is None else next_outputs.unflatten(0, (batch, k))
        return block, state.unflatten(0, (batch, k)), kept

    def _score(
        self, state: Tensor, timestep: int, prompts: Sequence[str], conditioning: Conditioning
    ) -> tuple[Tensor, Tensor | None]:
        """Scores [B*K] of candidates at `timestep`, and the network outputs there where scoring needed them."""
        policy, k = self._policy, self._settings.num_candidates
        t = self._times(len(state), timestep)
        outputs: Tensor | None = None
        readable = state
        if self._scorer.reads == "pixels":
            if timestep > 0:
                outputs = self._predict(state, t, conditioning)
                readable = predict_x0(policy.schedule, outputs, state, t)
            readable = policy.decode(readable)
        texts = [prompt for prompt in prompts for _ in range(k)]
        scores = self._score_in_parts(readable, texts, t)
        self.counters.scored_candidates += len(state)
        if not bool(torch.isfinite(scores).all()):
            row = int((~torch.isfinite(scores)).nonzero()[0])
            raise FloatingPointError(f"{self._scorer.name} gave a non-finite score at t = {timestep}: {texts[row]!r}")
        return scores, outputs

    def _score_in_parts(self, rows: Tensor, texts: list[str], t: Tensor) -> Tensor:
        size = self._policy.max_batch or len(rows)
        starts = range(0, len(rows), size)
        return torch.cat(
            [self._scorer.score(rows[s : s + size], texts[s : s + size], t[s : s + size]).float() for s in starts]
        )

    def _continue_from(self, scores: Tensor, noise: PromptNoise) -> list[int]:
        rule = self._settings.continuation
        if rule == "random":
            return noise.integers(scores.shape[1])
        return (scores.argmax(1) if rule == "win" else scores.argmin(1)).tolist()

    def _threshold(self, step: int) -> float:
        threshold = self._settings.threshold
        if not isinstance(threshold, SigmaThreshold):
            return threshold
        schedule = self._policy.schedule
        sigmas = schedule.sigma(schedule.trained_timesteps.to(self._policy.device))
        sigma = schedule.sigma(self._times(1, step))
        rise = (sigma - sigmas.min()) / (sigmas.max() - sigmas.min())
        return threshold.low + float(rise) * (threshold.high - threshold.low)

    def _group(
        self,
        item: PromptItem,
        stamp: Stamp,
        pairs: PairList,
        conditioning: Conditioning,
        row: int,
        scores: Tensor,
        scored_at: list[int],
    ) -> PreferenceGroup:
        shared = self._settings.block_length == 1
        x_t_win, x_t_lose = self._stack(pairs.x_t_win), self._stack(pairs.x_t_lose)
        timestep = torch.tensor(pairs.timestep, dtype=torch.int64)
        ref_win = ref_lose = None
        if self._reference:
            one = conditioning.rows(slice(row, row + 1))
            ref_win = self._reference_mean(x_t_win, timestep, one)
            ref_lose = None if shared else self._reference_mean(x_t_lose, timestep, one)
        return PreferenceGroup(
            **shared_fields(item, stamp, conditioning, row),
            x_t=x_t_win.cpu(),
            x_t_lose=None if shared else x_t_lose.cpu(),
            x_prev_win=self._stack(pairs.x_prev_win).cpu(),
            x_prev_lose=self._stack(pairs.x_prev_lose).cpu(),
            timestep=timestep,
            ref_mean_win=ref_win,
            ref_mean_lose=ref_lose,
            score_win=column(pairs.score_win),
            score_lose=column(pairs.score_lose),
            behaviour_logp_win=column(pairs.logp_win),
            behaviour_logp_lose=column(pairs.logp_lose),
            scores=scores,
            score_timesteps=torch.tensor(scored_at, dtype=torch.int64),
            final_score=float(scores[-1].mean()),
        )

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        if not tensors:
            return torch.zeros((0, *self._policy.latent_shape), device=self._policy.device)
        return torch.stack(tensors)


def plan_blocks(
    schedule: NoiseSchedule, kappa: int, min_timestep: int, block_length: int
) -> tuple[list[int], list[list[int]]]:
    """Timesteps of the plain steps, then the blocks of candidate steps (the last block may be shorter).

    A step draws candidates when its target t' <= kappa. Steps whose target lies below `min_timestep` (the paper's
    timestep-range ablation) are not walked: the rollout ends where its last candidates are scored. Nor is the last
    step of a flow, which has no noise and lands on the x0 through which those candidates are scored.
    """
    steps = schedule.trained_timesteps.tolist()
    targets = schedule.next_timestep(schedule.trained_timesteps).tolist()
    plain = [step for step, target in zip(steps, targets, strict=True) if target > kappa]
    pooled = [step for step, target in zip(steps, targets, strict=True) if min_timestep <= target <= kappa]
    return plain, [pooled[start : start + block_length] for start in range(0, len(pooled), block_length)]
