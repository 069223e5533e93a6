"""CLIP score (arXiv:2104.08718): 100 · cos(picture, prompt) of any CLIP in HF's format.

The paper scales by 2.5 and cuts at 0; here as commonly reported, times 100, and not cut: bad pictures keep their order.
Preprocessing is that of HF's CLIP processor.

Known taste: none for looks. It reads whether what the prompt names is there, like a bag of words: which attribute
belongs to which object hardly counts (arXiv:2502.03566), and a word written in the picture counts as the thing itself
(arXiv:2206.07835).
"""

from __future__ import annotations

from pathlib import Path

from reward.frozen import ContrastiveScorer
from reward.hf_clip import HfTowers

SCALE = 100.0


class ClipScore(ContrastiveScorer):
    """`Scorer`; named by model, weights and size."""

    def __init__(self, clip: Path | str) -> None:
        """From HF's directory or hub id; errors as `HfTowers`."""
        towers = HfTowers(clip)
        name = f"clip_score-{Path(clip).name}-{towers.version}-{towers.image_size}px-crop"
        super().__init__(towers, name, lambda: SCALE)
