"""Human Preference Score v2.0 and v2.1 (arXiv:2306.09341): open_clip ViT-H-14 fine-tuned on HPD v2's rankings.

score = 100 · cos(picture, prompt). Both versions are this code with another checkpoint; the name says which.
Preprocessing is theirs: 8 bits, the *long* side to 224 by antialiased bicubic, black around what is not square.

Known taste: that of HPD v2's rankers over pictures of 2022's models; three of the four styles of its benchmark are
animation, concept art and painting, the fourth is photographs. As `reward/pickscore.py` says, detail can cost.
"""

from __future__ import annotations

from pathlib import Path

from reward.frozen import ContrastiveScorer
from reward.open_clip_model import OpenClipTowers
from reward.weights_file import weights_version

SCALE = 100.0


class HumanPreferenceScore(ContrastiveScorer):
    """`Scorer`; named by version, weights and size."""

    def __init__(self, version: str, checkpoint: Path | str, architecture: str = "ViT-H-14") -> None:
        """From the published checkpoint; errors as `load_open_clip`."""
        towers = OpenClipTowers(architecture, checkpoint, "pad")
        name = f"hps-v{version}-{weights_version(checkpoint)}-{towers.image_size}px-pad"
        super().__init__(towers, name, lambda: SCALE)
