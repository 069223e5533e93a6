"""What one rank of a preference model's training takes on its device, by a formula. No torch is needed.

    weights     = frozen base (configs/memory.py) + preference model of N parameters with its gradients and two moments
                  as the engine's ZeRO stage shares them + 4 N for the starting model where `labels.by` is `scorer`
    activations = the largest of three moments, for P = 2 x training.micro_batch_pairs pictures:
                  the base predicts   P latents, doubled by guidance, x one latent's forward pass
                  the autoencoder     P x pixels x the decoder's bytes a pixel (its encoder takes less)
                  the update          P x one picture and caption through ViT-H, forward and backward, and the
                                      bfloat16 copy of its weights (2 N) under autocast

The bytes of a picture are counted as configs/activations.py's are (`tests.benchmarks.activation_memory.scorer_bytes`).
"""

from __future__ import annotations

from configs.activations import ACTIVATIONS, DECODER_A_PIXEL
from configs.memory import GB, SIZES, STEP_AWARE_VIT_H, engine_copies
from configs.model import MINIATURE
from configs.spm import SpmConfig

SCORED_PICTURE = {
    ("bfloat16", False): 0.628e9,
    ("bfloat16", True): 0.121e9,
    ("none", False): 0.969e9,
    ("none", True): 0.167e9,
}
"""(scorer.autocast, scorer.gradient_checkpointing) -> bytes kept for one picture's backward pass. The text encoder's
blocks are never recomputed."""


def spm_weights(config: SpmConfig) -> float:
    """Bytes of weights and optimiser state of one rank."""
    size, width = SIZES[config.base.family], _bytes_each(config)
    trained = STEP_AWARE_VIT_H * 4
    whole, shared = engine_copies(config.training.engine.zero_stage, config.training.engine.offload)
    copies = whole + shared / config.training.ranks + (config.labels.by == "scorer")
    return ((size.network + size.autoencoder + size.text) * width + trained * copies) * 1e6


def spm_activations(config: SpmConfig) -> float:
    """Most bytes of activations of one rank."""
    base, scorer, one = config.base, config.scorer, ACTIVATIONS[config.base.family]
    pictures, side = 2 * config.training.micro_batch_pairs, base.image_size or one.side
    half = _bytes_each(config) / 2
    predicted = pictures * (2 if base.guidance_scale > 1 else 1) * one.sampling * (side / one.side) ** 2 * half
    decoded = pictures * side**2 * DECODER_A_PIXEL * half
    copy = STEP_AWARE_VIT_H * 2e6 if scorer.autocast == "bfloat16" else 0.0
    updated = pictures * SCORED_PICTURE[scorer.autocast, scorer.gradient_checkpointing] + copy
    return max(predicted, decoded, updated)


def render_spm_memory(config: SpmConfig) -> str:
    """The lines of a dry run."""
    if MINIATURE in (config.base.pretrained, config.scorer.clip):
        return "Expected memory: the miniature needs no GPU; about 2 GB of main memory for each rank."
    return (
        f"Expected memory of one rank, for {SIZES[config.base.family].example}'s size and a preference model of "
        f"ViT-H's: {spm_weights(config) / GB:.1f} GB of weights and optimiser state, up to "
        f"{spm_activations(config) / GB:.1f} GB of activations on top.\n"
        "Fewer activations: training.micro_batch_pairs (with more training.accumulation), "
        "scorer.gradient_checkpointing; the formulas are in configs/spm_memory.py."
    )


def _bytes_each(config: SpmConfig) -> int:
    dtype = config.base.dtype
    if dtype == "auto":
        return 2 if config.training.resources.gpus > 0 else 4
    return 4 if dtype == "float32" else 2
