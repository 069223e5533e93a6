"""What activations take on each role's device, by a formula. No torch is needed.

    latents   = prompts x candidates of one chunk, rollout.workers.max_batch at most; doubled where guidance is a second
                evaluation
    worker    = the larger of  latents x one latent's forward pass  and  pictures x pixels x the decoder's bytes a pixel
    evaluator = the same with evaluation.batch_size, or all of its pictures where they are fewer
    learner   = latents of a micro-batch (two a pair where the halves start apart, doubled by guidance) x one latent's
                forward and backward pass, with or without model.gradient_checkpointing
    one latent of another picture size = (size / own size)^2 of one of the model's own; float32 takes twice bfloat16

The bytes of one latent are counted on networks of the published configuration on tensors without data
(`python -m tests.benchmarks.activation_memory`), bfloat16 with a float32 adapter on attention, fused attention. Text
encoders, the preference model's own activations and what kernels need for themselves are not in it, nor a learner rank
that trains the whole network, which saves more.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema import AtelierConfig


@dataclass(frozen=True)
class LatentActivations:
    """Bytes of one latent of the model's own size."""

    side: int
    """Pixels of the model's own picture."""
    sampling: float
    training: float
    checkpointed: float


ACTIVATIONS = {
    "sd": LatentActivations(512, 0.068e9, 1.065e9, 0.258e9),
    "sdxl": LatentActivations(1024, 0.165e9, 7.843e9, 0.582e9),
    "pixart": LatentActivations(1024, 0.126e9, 6.564e9, 0.575e9),
    "sd3": LatentActivations(1024, 0.177e9, 5.798e9, 0.664e9),
    "flux": LatentActivations(1024, 0.491e9, 32.255e9, 2.559e9),
}
DECODER_A_PIXEL = 1536.1
"""Bytes of Stable Diffusion's decoder for each pixel of a picture, in bfloat16."""
_STEP_LOSSES = ("spo", "d3po", "ddpo")
"""Losses on denoising steps: they evaluate the network with guidance, as the sampler does."""
_TWO_HALVES = ("d3po", "dpo", "simpo", "mapo")


def expected_activations(config: AtelierConfig, bytes_each: int) -> dict[str, float]:
    """Role -> most bytes of activations of one actor; `bytes_each`: of a value of the base's dtype."""
    one, model = ACTIVATIONS[config.model.family], config.model
    side = model.image_size or one.side
    scale = (side / one.side) ** 2 * bytes_each / 2
    guided = 2 if config.noise.guidance_scale > 1 and model.family != "flux" else 1

    def sampled(pictures: int) -> float:
        network = pictures * guided * one.sampling * scale
        return max(network, pictures * side**2 * DECODER_A_PIXEL * bytes_each / 2)

    evaluation = config.evaluation
    together = min(evaluation.batch_size, evaluation.num_prompts * evaluation.pictures_per_prompt)
    found = {"rollout worker": sampled(_pictures_a_call(config)), "evaluator": sampled(together)}
    if model.trainable == "full":
        return found
    latents = _latents_a_pass(config) * (guided if config.learner.objective.type in _STEP_LOSSES else 1)
    trained = one.checkpointed if model.gradient_checkpointing else one.training
    return {**found, "learner rank": latents * trained * scale}


def _pictures_a_call(config: AtelierConfig) -> int:
    workers, sampler = config.rollout.workers, config.rollout.sampler
    names = ("num_candidates", "num_images", "num_trajectories")
    candidates = next(getattr(sampler, name) for name in names if hasattr(sampler, name))
    return min(workers.max_batch, workers.chunk_groups * candidates)


def _latents_a_pass(config: AtelierConfig) -> int:
    objective = config.learner.objective.type
    apart = objective == "spo" and getattr(config.rollout.sampler, "block_length", 1) > 1
    return config.learner.micro_batch_pairs * (2 if apart or objective in _TWO_HALVES else 1)
