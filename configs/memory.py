"""What the weights of a run weigh on each role's device, from the published sizes of the families. No torch is needed.

    frozen    = parameters x 2 bytes (bfloat16, float16) or 4 (float32)
    adapter   = parameters per rank x rank x 4 bytes; the learner also holds gradient, two Adam moments: x 16 bytes
    worker    = network + autoencoder + text encoders + adapter + preference model in float32
    evaluator = the same as a worker;  learner rank = network + 16 bytes for each adapter parameter
    ..with a pixel term     + decoder in float32 + the activations of decoding, which its picture size fixes
    ..on a data set         + autoencoder + text encoders, which encode the rank's own rows

Other activations, CUDA's own few hundred MB and the allocator's spare blocks come on top: they depend on batch and
picture and are not estimated here. A worker's grow with rollout.workers.max_batch, a learner rank's with
learner.micro_batch_pairs, and shrink with model.gradient_checkpointing.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.data import OnlineData
from configs.model import MINIATURE, ModelSection
from configs.pixel_memory import pixel_bytes
from configs.schema import AtelierConfig

GB = 1e9


@dataclass(frozen=True)
class FamilySize:
    """Millions of parameters of a family's best-known model."""

    example: str
    network: float
    autoencoder: float
    text: float
    adapter_per_rank: float
    """On to_q, to_k, to_v and to_out.0."""
    t5: float = 0.0
    """Of `text`: what model.t5 = false leaves out."""


CLIP_L, CLIP_BIG_G, T5_XXL = 123.06, 694.66, 4762.31
SIZES = {
    "sd": FamilySize("Stable Diffusion 1.5", 859.52, 83.65, CLIP_L, 0.1993),
    "sdxl": FamilySize("SDXL 1.0", 2567.46, 83.65, CLIP_L + CLIP_BIG_G, 1.4515),
    "pixart": FamilySize("PixArt-Sigma XL/2", 610.86, 83.65, T5_XXL, 0.5161),
    "sd3": FamilySize("Stable Diffusion 3 medium", 2028.33, 83.82, CLIP_L + 0.59 + CLIP_BIG_G + T5_XXL, 0.2949, T5_XXL),
    "flux": FamilySize("FLUX.1 dev", 11901.41, 83.82, CLIP_L + T5_XXL, 1.1674),
}
STEP_AWARE_VIT_H = 1306.16
"""CLIP ViT-H/14 (986 M) with adaLN in each of its 32 vision blocks, in float32."""


def expected_memory(config: AtelierConfig) -> dict[str, float]:
    """Role -> bytes of weights (and, for a learner rank, optimiser state) of one actor. Empty for the miniature."""
    model = config.model
    if model.pretrained == MINIATURE:
        return {}
    size, width = SIZES[model.family], _bytes_each(model, config.learner.resources.gpus > 0)
    adapter = size.adapter_per_rank * model.lora.rank
    text = size.text - (0.0 if model.t5 else size.t5)
    network = size.network * width
    scorer = STEP_AWARE_VIT_H * 4 if getattr(config.rollout.scorer, "type", None) == "step_aware" else 0.0
    worker = network + (size.autoencoder + text) * width + adapter * 4 + scorer
    ranks = config.learner.ranks if config.learner.engine.zero_stage == 3 else 1
    learner = network / ranks + adapter * 16 + pixel_bytes(config) / 1e6
    if isinstance(config.data, OnlineData):
        return {"rollout worker": worker * 1e6, "learner rank": learner * 1e6, "evaluator": worker * 1e6}
    learner += (size.autoencoder + text) * width
    return {"learner rank": learner * 1e6, "evaluator": worker * 1e6}


def render_memory(config: AtelierConfig) -> str:
    """The lines of a dry run."""
    memory = expected_memory(config)
    if not memory:
        return "Expected memory: the miniature needs no GPU; about 1 GB of main memory for each process."
    size = SIZES[config.model.family]
    lines = [f"Expected memory of one actor, weights and optimiser state alone, for {size.example}'s size:"]
    lines += [f"  {role}: {amount / GB:.1f} GB" for role, amount in memory.items()]
    lines.append("Activations come on top (rollout.workers.max_batch, learner.micro_batch_pairs); configs/memory.py.")
    return "\n".join(lines)


def _bytes_each(model: ModelSection, on_gpu: bool) -> int:
    if model.dtype == "auto":
        return 2 if on_gpu else 4
    return 4 if model.dtype == "float32" else 2
