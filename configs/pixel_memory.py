"""What gradients through the autoencoder's decoder hold at a time, by a formula that docs/objectives.md derives.

    3,112 float32 values for each pixel of one picture: the decoder's last block in the backward pass, the inputs of
    the others, a gradient on its way; and two pictures of three float32 channels, decoded and wanted, for every
    picture of the micro-batch

For the decoder of Stable Diffusion 1.x, SDXL and PixArt under checkpointing. A test holds it to what is counted on
tensors without data.
"""

from __future__ import annotations

from configs.objectives import pixel_of
from configs.schema import AtelierConfig

VALUES_A_PIXEL = 2688 + 168 + 256
DECODER = 49.49
"""Millions of parameters, held in float32."""
_DEFAULT_SIDES = {"sd": 512, "sdxl": 1024, "pixart": 1024}
"""Pixels where model.image_size is unset."""


def pixel_term_bytes(side: int, pictures: int) -> float:
    """Peak of one micro-batch of so many pictures of side x side pixels, without the decoder's weights."""
    return side**2 * (4.0 * VALUES_A_PIXEL + pictures * 2 * 3 * 4)


def pixel_bytes(config: AtelierConfig) -> float:
    """What the pixel term adds to a learner rank: the decoder and its activations; 0 where it is not in force."""
    learner = config.learner
    if pixel_of(learner.objective) is None:
        return 0.0
    side = config.model.image_size or _DEFAULT_SIDES.get(config.model.family, 1024)
    halves = 1 if learner.objective.type == "sft" else 2
    return DECODER * 4e6 + pixel_term_bytes(side, halves * learner.micro_batch_pairs)
