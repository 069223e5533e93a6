"""What the weights of a run weigh on each role's device, from the published sizes of the families. No torch is needed.

    frozen    = parameters x 2 bytes (bfloat16, float16) or 4 (float32)
    adapter   = parameters per rank x rank x 4 bytes; the learner also holds gradient, two Adam moments: x 16 bytes
    worker    = network + autoencoder + text encoders + adapter + preference model in float32
    evaluator = the same as a worker;  learner rank = network + 16 bytes for each adapter parameter
    ..with a pixel term     + decoder in float32 + the activations of decoding, which its picture size fixes
    ..on a data set         + autoencoder + text encoders, which encode the rank's own rows

Where the whole network of N parameters is trained (model.trainable: full), its weights are float32 everywhere:

    worker    = 4 N, and 4 N for the frozen copy where it evaluates the reference, in place of network and adapter
    evaluator = 8 N: the copy is the base that it compares with
    learner   = weights, gradients, the optimiser's own copy of the weights (ZeRO 1 to 3), two moments; R ranks:
                ZeRO 0: 16 N   1: 8 N + 12 N / R   2: 4 N + 16 N / R   3: 20 N / R
                and 4 N, on every rank, for the frozen copy where the learner evaluates the reference;
                offload leaves the weights (ZeRO 1, 2), or nothing (3), on the GPU

Other activations are in configs/activations.py. CUDA's own few hundred MB, DeepSpeed's bucket of gradients (4 N, at
most 2 GB) and the allocator's spare blocks come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.activations import expected_activations
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
    others = (size.autoencoder + size.text - (0.0 if model.t5 else size.t5)) * width
    sides = _with_adapter(config, size, width) if model.trainable == "lora" else _whole_network(config, size)
    worker, learner, evaluator = sides
    learner += pixel_bytes(config) / 1e6
    beside = others + _scorer(config)
    if isinstance(config.data, OnlineData):
        roles = {"rollout worker": worker + beside, "learner rank": learner, "evaluator": evaluator + beside}
    else:
        roles = {"learner rank": learner + others, "evaluator": evaluator + beside}
    return {role: amount * 1e6 for role, amount in roles.items()}


def _with_adapter(config: AtelierConfig, size: FamilySize, width: int) -> tuple[float, float, float]:
    """Network and adapter in worker, learner rank and evaluator, in millions of bytes."""
    network, adapter = size.network * width, size.adapter_per_rank * config.model.lora.rank
    ranks = config.learner.ranks if config.learner.engine.zero_stage == 3 else 1
    return network + adapter * 4, network / ranks + adapter * 16, network + adapter * 4


def _whole_network(config: AtelierConfig, size: FamilySize) -> tuple[float, float, float]:
    """The same where every weight is trained."""
    weights, side = size.network * 4, config.learner.reference_side
    engine = config.learner.engine
    whole, shared = engine_copies(engine.zero_stage, engine.offload)
    learner = whole + shared / config.learner.ranks + (side == "learner")
    return weights * (1 + (side == "worker")), weights * learner, weights * 2


def engine_copies(zero_stage: int, offload: str) -> tuple[float, float]:
    """How often the engine keeps the trained weights' bytes on every rank's device, and shared among all ranks."""
    if offload == "cpu":
        return (0.0 if zero_stage == 3 else 1.0), 0.0
    return {0: (4.0, 0.0), 1: (2.0, 3.0), 2: (1.0, 4.0), 3: (0.0, 5.0)}[zero_stage]


def _scorer(config: AtelierConfig) -> float:
    """Millions of bytes of the preference model."""
    return STEP_AWARE_VIT_H * 4 if getattr(config.rollout.scorer, "type", None) == "step_aware" else 0.0


def render_memory(config: AtelierConfig) -> str:
    """The lines of a dry run."""
    memory = expected_memory(config)
    if not memory:
        return "Expected memory: the miniature needs no GPU; about 1 GB of main memory for each process."
    size = SIZES[config.model.family]
    each = 4 if config.model.trainable == "full" else _bytes_each(config.model, config.learner.resources.gpus > 0)
    on_top = expected_activations(config, each)
    lines = [
        f"Expected memory of one actor, for {size.example}'s size: weights and optimiser state, and on top of them"
    ]
    for role, amount in memory.items():
        more = f"up to {on_top[role] / GB:.1f} GB of activations" if role in on_top else "activations (not counted)"
        lines.append(f"  {role}: {amount / GB:.1f} GB, {more}")
    if config.model.trainable == "full":
        lines.append(
            f"Each publication passes {size.network * 4e6 / GB:.1f} GB through Ray's object store, in main memory: it "
            f"needs room for three."
        )
    lines.append(
        "Fewer activations: rollout.workers.max_batch, learner.micro_batch_pairs, model.gradient_checkpointing; the "
        "formulas are in configs/memory.py and configs/activations.py."
    )
    return "\n".join(lines)


def _bytes_each(model: ModelSection, on_gpu: bool) -> int:
    if model.dtype == "auto":
        return 2 if on_gpu else 4
    return 4 if model.dtype == "float32" else 2
