"""Trains the CLIP that the miniature's preference model starts from (configs/miniature_spm.yaml).

    python -m rollout.miniature.train_clip              # three minutes on one core, resumable; work/miniature/clip

Clean renders: pairs of one caption, crisp preferred, and pictures against captions (InfoNCE). Every picture is varied
(preference_data.vary_pictures), each of a pair on its own and anew at every step. It stands in for PickScore, which the
paper starts from.

T pairs; pictures [T, 3, 64, 64] in [-1, 1].
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from reward.losses import preference_loss
from reward.preprocess import clip_pixels
from reward.step_aware import unit
from rollout.miniature.preference_data import sample_pairs, vary_pictures
from rollout.miniature.tokens import MAX_TOKENS, write_tokenizer
from rollout.miniature.train_denoiser import tokenise
from rollout.miniature.training import WORK, learning_rate, load_state, low_precision, parameter_count, save_state

SEED = 303
STEPS, RATE = 1300, 1e-3
PAIRS_PER_STEP = 48


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained CLIP: 64x64 pixels in patches of 8, vision width 96 and three layers, text width 64 and two."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        **special,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 8,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    clip.set_attn_implementation("eager")  # on a CPU the fused kernel's backward is slow
    return clip


def train_clean(clip: CLIPModel, tokenizer: CLIPTokenizer, total_steps: int, state: Path) -> None:
    """Loss: the pair's cross-entropy + symmetric InfoNCE between the preferred pictures and their captions."""
    optimiser = torch.optim.AdamW(clip.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    first, started = load_state(state, clip=clip, optimiser=optimiser), time.time()
    print(f"clean: {parameter_count(clip)} parameters; from step {first} to {total_steps}", flush=True)
    for step in range(first, total_steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, RATE, 100, total_steps)
        pairs = sample_pairs(PAIRS_PER_STEP, f"{SEED}/clean/{step}")
        draw = torch.Generator().manual_seed(SEED + step)
        pixels = clip_pixels(vary_pictures(torch.cat([pairs.first, pairs.second]), draw), 64)
        with low_precision():
            images = clip.get_image_features(pixels)
            texts = clip.get_text_features(tokenise(tokenizer, pairs.captions))
        images, texts = unit(features(images)), unit(features(texts))
        similarity = clip.logit_scale.exp() * images @ texts.T  # [2T, T]
        score_a, score_b = similarity.chunk(2)
        own_a, own_b = score_a.diagonal(), score_b.diagonal()
        loss = preference_loss(own_a, own_b, pairs.label, 1 - pairs.label, torch.ones(PAIRS_PER_STEP))
        chosen = torch.where((pairs.label > 0.5)[:, None], score_a, score_b)
        target = torch.arange(PAIRS_PER_STEP)
        contrast = (F.cross_entropy(chosen, target) + F.cross_entropy(chosen.T, target)) / 2
        optimiser.zero_grad()
        (loss + contrast).backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0 or step + 1 == total_steps:
            save_state(state, step + 1, clip=clip, optimiser=optimiser)
            elapsed = time.time() - started
            print(f"clean {step + 1} pair {loss.item():.3f} caption {contrast.item():.3f} {elapsed:.0f}s", flush=True)


def features(output: Any) -> Tensor:
    """CLIP's projected features, whether this version of transformers returns them bare or wrapped."""
    return output if isinstance(output, Tensor) else output.pooler_output


def main() -> None:
    """Trains, writes the CLIP and its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    tokenizer = write_tokenizer(WORK / "tokenizer")
    clip = build_clip(tokenizer)
    train_clean(clip, tokenizer, options.steps, WORK / "clip.pt")
    clip.save_pretrained(WORK / "clip")
    write_tokenizer(WORK / "clip")


if __name__ == "__main__":
    main()
