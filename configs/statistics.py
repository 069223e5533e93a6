"""Names, as TensorBoard tags, of the statistics of `reward/appearance.py` and `reward/diversity.py`."""

from __future__ import annotations

APPEARANCE = (
    "appearance/high_frequency",
    "appearance/depth_of_field",
    "appearance/saturation",
    "appearance/brightness_spread",
    "appearance/mirror_symmetry",
    "appearance/palette_entropy",
    "appearance/palette_divergence",
)
WITHIN = ("diversity/within_spread", "diversity/within_vendi")
"""Over the pictures of one prompt: only where there are several."""
ACROSS = ("diversity/across_spread", "diversity/across_vendi")
"""Over one picture of every prompt."""
STATISTICS = (*APPEARANCE, *WITHIN, *ACROSS)
