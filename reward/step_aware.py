"""The step-aware preference model: CLIP whose vision tower knows at which denoising step the picture was taken.

Source: Step-aware Preference Optimization (arXiv:2406.04314) on the weights of PickScore (arXiv:2305.01569), with the
adaptive layer norm of DiT (arXiv:2212.09748). Works on HF's `CLIPModel` of any size, whose submodules are used as is.

Shapes: B batch, L tokens of a prompt, N patches + 1, d width of the vision tower, P width of the shared space, S image
size.

Names of the weights, as in the released checkpoints: every one starts with `model.`, then
    HF CLIP's own names                                                  text_model.*, vision_model.*, logit_scale, …
    vision_model.encoder.layers.N.adaLN_modulation.1.{weight,bias}       [6d, d], [6d]
    vision_model.adaLN_modulation.1.{weight,bias}                        [2d, d], [2d]
    t_embedder.mlp.{0,2}.{weight,bias}                                   [d, 256], [d], [d, d], [d]

Departure from the published code: it starts its inference class with all modulation biases at 1, which is not the model
that its training script starts from. Here a model without a checkpoint is the plain CLIP exactly.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from transformers import CLIPConfig, CLIPModel

from reward.preprocess import clip_pixels
from reward.weights_file import folder_or_hub_id, listed, load_strict, read_weights, write_weights

WEIGHTS = "step_aware.safetensors"
"""The weights' file in a folder that also holds CLIP's config.json and tokenizer."""
FREQUENCY_WIDTH = 256
"""Width of the sinusoid (DiT's default)."""
MAX_PERIOD = 10_000
"""Longest period of the sinusoid (DiT's default)."""
TIME_INIT_STD = 0.02
"""Standard deviation of the time MLP's weights at the start (DiT's published code)."""


def timestep_sinusoid(timesteps: Tensor, width: int = FREQUENCY_WIDTH) -> Tensor:
    """float32 [B, width] for timesteps [B]: cosines first, then sines, frequencies MAX_PERIOD^(−i / (width/2))."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedder(nn.Module):
    """e_t = Linear(SiLU(Linear(sinusoid(t)))): [B] → [B, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(FREQUENCY_WIDTH, width), nn.Linear(width, width)
        for layer in layers:
            nn.init.normal_(layer.weight, std=TIME_INIT_STD)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1])

    def forward(self, timesteps: Tensor) -> Tensor:
        """[B, d] in the weights' dtype."""
        return self.mlp(timestep_sinusoid(timesteps).to(next(self.mlp.parameters()).dtype))


def modulation(width: int, chunks: int, gates: tuple[int, ...] = ()) -> nn.Sequential:
    """SiLU then Linear, [B, d] → [B, chunks·d]: all zero, but for the biases of the chunks in `gates`, which are 1."""
    linear = nn.Linear(width, chunks * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        for gate in gates:
            linear.bias[gate * width : (gate + 1) * width] = 1.0
    return nn.Sequential(nn.SiLU(), linear)


def vision_block(layer: Any, h: Tensor, e_t: Tensor) -> Tensor:
    """One time-conditional block over a CLIP encoder layer: h [B, N, d] and e_t [B, d] → [B, N, d].

    h = h + g1·Attn(LN1(h)·(1 + a1) + b1);  h = h + g2·MLP(LN2(h)·(1 + a2) + b2)   (DiT, arXiv:2212.09748, figure 3)
    """
    b1, a1, g1, b2, a2, g2 = layer.adaLN_modulation(e_t)[:, None, :].chunk(6, dim=-1)  # each [B, 1, d]
    attended, _ = layer.self_attn(hidden_states=layer.layer_norm1(h) * (1 + a1) + b1, attention_mask=None)
    h = h + g1 * attended
    return h + g2 * layer.mlp(layer.layer_norm2(h) * (1 + a2) + b2)


def unit(features: Tensor) -> Tensor:
    """Rows of float32 length 1: [B, P] → [B, P]."""
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)


def load_clip(clip_dir: Path | str) -> CLIPModel:
    """A CLIP in HF's format. HF fills what a checkpoint lacks, or has in another shape, with random numbers and ignores
    what the model lacks, with a warning; here each is an error.

    Raises ValueError where weights are truncated, missing, surplus or of another shape, OSError where there are none.
    """
    folder_or_hub_id(clip_dir, "CLIP")
    try:
        loaded: Any = CLIPModel.from_pretrained(clip_dir, output_loading_info=True, ignore_mismatched_sizes=True)
    except SafetensorError as error:
        raise ValueError(f"CLIP weights in {clip_dir} cannot be read (truncated?): {error}") from error
    clip, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"CLIP weights in {clip_dir} are incomplete: missing {', '.join(missing)}")
    if other := sorted(report["mismatched_keys"]):
        name, found, wanted = other[0]
        raise ValueError(
            f"CLIP weights in {clip_dir} are another model's than its config.json's: {len(other)} of another shape, "
            f"first {name} {list(found)} for {list(wanted)}"
        )
    if surplus := sorted(report["unexpected_keys"]):
        raise ValueError(
            f"CLIP weights in {clip_dir} are another model's: {len(surplus)} unexpected: {listed(surplus)}"
        )
    return clip


class StepAwarePreferenceModel(nn.Module):
    """score(picture, prompt, t) = exp(logit_scale) · cos(image features at t, text features).

    Weights are float32 unless moved; scores are always float32. Differentiable in the pictures and in every weight.
    """

    def __init__(self, clip: CLIPModel) -> None:
        """Take over `clip` and make its vision blocks time-conditional; the result scores exactly as `clip` does."""
        super().__init__()
        vision: Any = clip.config.vision_config
        width, self.image_size = int(vision.hidden_size), int(vision.image_size)
        for layer in clip.vision_model.encoder.layers:
            layer.adaLN_modulation = modulation(width, chunks=6, gates=(2, 5))
        clip.vision_model.adaLN_modulation = modulation(width, chunks=2)
        clip.t_embedder = TimestepEmbedder(width)
        self.model: Any = clip
        self.gradient_checkpointing = False
        """Recompute the vision blocks in the backward pass: less memory, about a third more time."""

    @classmethod
    def from_pretrained(cls, clip_dir: Path | str, checkpoint: Path | str | None = None) -> StepAwarePreferenceModel:
        """Build from a CLIP in HF's format, in float32, on the CPU, in evaluation mode.

        Args:
            clip_dir: directory (or hub id) of a CLIP model. With a checkpoint only its `config.json` is read.
            checkpoint: step-aware weights, complete (.safetensors, or weights-only .bin, .pt, .pth). Unset: the start.

        Raises:
            FileNotFoundError: there is no such directory or checkpoint.
            ValueError: the checkpoint, or the CLIP's own weights, cannot be read or do not fit; lists the names.
        """
        if checkpoint is not None:
            model = cls(CLIPModel(CLIPConfig.from_pretrained(folder_or_hub_id(clip_dir, "CLIP"))))
            load_strict(model, read_weights(checkpoint), f"checkpoint {checkpoint}")
            return model.float().eval()
        return cls(load_clip(clip_dir).float()).eval()

    def image_features(self, pixels: Tensor, timesteps: Tensor) -> Tensor:
        """Features [B, P], not normalised, of preprocessed pixels [B, 3, S, S] at timesteps [B]."""
        vision = self.model.vision_model
        e_t = self.model.t_embedder(timesteps)
        h = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer in vision.encoder.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h = recompute(vision_block, layer, h, e_t, use_reentrant=False)
            else:
                h = vision_block(layer, h, e_t)
        b, a = vision.adaLN_modulation(e_t).chunk(2, dim=-1)  # each [B, d]
        return self.model.visual_projection(vision.post_layernorm(h[:, 0]) * (1 + a) + b)

    def text_features(self, input_ids: Tensor) -> Tensor:
        """Features [B, P], not normalised, of token ids int64 [B, L]."""
        return self.model.text_projection(self.model.text_model(input_ids=input_ids).pooler_output)

    def score_features(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """float32 [B] from features [B, P] of both kinds."""
        cosine = (unit(image_features) * unit(text_features)).sum(dim=-1)
        return self.model.logit_scale.float().exp() * cosine

    def score(self, images: Tensor, input_ids: Tensor, timesteps: Tensor) -> Tensor:
        """Preference of pictures for their prompts.

        Args:
            images: [B, 3, H, W] in [-1, 1], any size; resized and cropped as `reward.preprocess` says.
            input_ids: int64 [B, L], prompts padded to the tokenizer's maximum.
            timesteps: int64 [B], the training timestep at which the picture was predicted; 0 for a clean one.

        Returns:
            float32 [B], near 20 for a model started from PickScore.
        """
        pixels = clip_pixels(images, self.image_size)
        return self.score_features(self.image_features(pixels, timesteps), self.text_features(input_ids))

    def forward(self, images: Tensor, input_ids: Tensor, timesteps: Tensor) -> Tensor:
        """`score`, callable through wrappers that hook `forward` (DeepSpeed)."""
        return self.score(images, input_ids, timesteps)

    def save_checkpoint(self, path: Path | str) -> None:
        """Write every weight as safetensors, under the names above; whole or not at all."""
        write_weights(self, path)
