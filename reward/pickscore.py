"""PickScore (arXiv:2305.01569): CLIP ViT-H/14 trained on which of two pictures users of Pick-a-Pic chose.

score = exp(logit_scale) · cos(picture, prompt), reported as it is: near 20, differences of 1 are large.
Preprocessing is that of HF's CLIP processor: 8 bits, antialiased bicubic to 224 on the short side, centre crop.

Known taste: the general choice of Pick-a-Pic's users, which follows the prompt first: where it parts from looks,
pictures with artifacts or colours that do not fit still win (arXiv:2406.04314, supplement 1). Scorers tuned from CLIP
give low scores to pictures rich in detail (arXiv:2507.19002).
"""

from __future__ import annotations

from pathlib import Path

from reward.frozen import ContrastiveScorer
from reward.hf_clip import HfTowers


class PickScore(ContrastiveScorer):
    """`Scorer`; named by model, weights and size."""

    def __init__(self, clip: Path | str, tokenizer: Path | str | None = None) -> None:
        """From HF's directories or hub ids; errors as `HfTowers`."""
        towers = HfTowers(clip, tokenizer)
        name = f"pickscore-{Path(clip).name}-{towers.version}-{towers.image_size}px-crop"
        super().__init__(towers, name, lambda: float(towers.module.logit_scale.exp()))
