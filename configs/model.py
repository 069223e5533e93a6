"""Which diffusion model is trained, and which of its weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.base import Section


class LoraSection(Section):
    """The low-rank adapter, where `model.trainable` is `lora`. Its weights are float32 whatever the base's dtype."""

    rank: int = Field(4, ge=1)
    """Rank of the adapter (step-wise paper: 4 for SD-1.5, 64 for SDXL)."""
    alpha: float | None = Field(None, gt=0)
    """Scale numerator: the adapter is multiplied by alpha / rank. Unset: equal to the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapter. Anything above 0 makes sampler and learner log-probabilities disagree."""
    target_modules: list[str] = Field(["to_q", "to_k", "to_v", "to_out.0"], min_length=1)
    """Layers that carry the adapter (name endings)."""

    @property
    def scale_numerator(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha


class ModelSection(Section):
    """The base model, in diffusers' format."""

    family: Literal["sd", "sdxl", "pixart", "sd3", "flux"] = "sd"
    """Which family the checkpoint belongs to: `sd` (Stable Diffusion 1.x, 2.x), `sdxl`, `pixart`, `sd3`, `flux`."""
    pretrained: str = "miniature"
    """Local directory, hub id or one .safetensors file; `miniature` is the model in this repository."""
    config: str | None = None
    """Of a single file: directory or hub id with the pipeline's configuration and tokenizers (needed offline)."""
    vae: str | None = None
    """Directory or hub id of an autoencoder in place of the pipeline's own (SDXL: one that works in float16)."""
    t5: bool = True
    """SD3: load the T5 text encoder; without it, its tokens are zeros, as diffusers has it (about 9.5 GB less)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the frozen parts; `auto` is bfloat16 on a GPU and float32 on a CPU. A network that is trained whole has
    float32 weights and computes in this dtype."""
    image_size: int | None = Field(None, ge=8)
    """Height and width of the pictures in pixels. Unset: the size the model was trained at."""
    trainable: Literal["lora", "full"] = "lora"
    """What is trained: `lora`, an adapter beside the frozen network; `full`, every weight of the network."""
    lora: LoraSection = LoraSection()
    """The adapter."""
    init_lora: str | None = None
    """Start from this exported LoRA: a .safetensors file, its folder, or the directory of a finished run."""
    init_lora_mode: Literal["adapter", "merged"] = "adapter"
    """`adapter`: the adapter starts there, the reference stays the base. `merged`: it becomes part of the base."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class NoiseSection(Section):
    """How one stochastic denoising step is taken, in sampling and in training alike."""

    num_steps: int = Field(20, ge=2, le=1000)
    """Denoising steps from noise to picture, each 1000 // num_steps timesteps wide (papers: 20)."""
    eta: float = Field(1.0, gt=0, le=1)
    """Stochasticity of the DDIM step (papers: 1). 0 has no log-probability and is refused."""
    flow_noise_level: float = Field(0.7, gt=0)
    """a, noise of a flow-matching step of SD3 and FLUX (Flow-GRPO, arXiv:2505.05470: 0.7); `eta` is not used there."""
    guidance_scale: float = Field(5.0, ge=1)
    """Guidance scale s (papers: 5). 1 switches guidance off. FLUX reads it as an input of its network."""
    negative_prompt: str = ""
    """What guidance pushes away from; empty as in the papers. FLUX has none."""


MINIATURE = "miniature"
"""Name of the model, of the prompts and of the preference model in this repository."""

FLOW_FAMILIES = ("sd3", "flux")
"""Families whose steps are flow matching: their timesteps depend on the checkpoint's scheduler."""
