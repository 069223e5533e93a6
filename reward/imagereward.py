"""ImageReward (arXiv:2304.05977): BLIP ViT-L/16 whose BERT text encoder attends to the picture, then a score head.

    picture ─► ViT ─► every patch ─┐ cross-attention
    prompt ──► BERT ◄──────────────┘ ─► state of token 0 ─► head ─► (r − MEAN) / STD

Built from transformers' BLIP parts; reads `ImageReward.pt` under its own names (timm's for the ViT, BERT's for text):
    blip.visual_encoder.{cls_token, pos_embed, patch_embed.proj, norm}
    blip.visual_encoder.blocks.N.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}
    blip.text_encoder.{embeddings, encoder.layer.N.{attention, crossattention, intermediate, output}}
    mlp.layers.{0,2,4,6,7}
    blip.{vision_proj, text_proj}   BLIP's own contrastive projections: in the file, never read by the score
Every other name is refused, and so is a missing one.
Sizes are read off the weights; heads are 64 wide, as in both published towers. Preprocessing: 8 bits, antialiased
bicubic on the short side, centre crop; prompts are cut at 35 tokens, so that long ones are judged by their beginning.

Known taste: rankings by experts, who also rated alignment with the text and fidelity, of pictures that Stable Diffusion
made for users' prompts (ImageRewardDB, from DiffusionDB). 0 is an average picture, 1 a deviation above.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertTokenizerFast, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from reward.frozen import FrozenScorer, check_prompt
from reward.preprocess import published_pixels
from reward.score_head import ScoreHead
from reward.weights_file import folder_or_hub_id, listed, load_strict, read_weights, weights_version

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw score, published code
MAX_TOKENS = 35  # published code
HEAD_WIDTH = 64  # ViT-L: 1024 / 16; BERT-base: 768 / 12
VIT_EPS, BERT_EPS = 1e-6, 1e-12  # BLIP's ViT; bert-base-uncased

_UNREAD = {f"blip.{part}_proj.{kind}" for part in ("vision", "text") for kind in ("weight", "bias")}
"""The published code's BLIP_Pretrain makes these two layers, so that its checkpoint has them; `score` uses neither."""
_VISION_NAMES = (  # timm's, transformers'; {} is a number
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.{}.norm{}.", "encoder.layers.{}.layer_norm{}."),
    ("blocks.{}.attn.qkv.", "encoder.layers.{}.self_attn.qkv."),
    ("blocks.{}.attn.proj.", "encoder.layers.{}.self_attn.projection."),
    ("blocks.{}.mlp.", "encoder.layers.{}.mlp."),
    ("norm.", "post_layernorm."),
)
_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."


class ImageReward(FrozenScorer):
    """`Scorer`; named by weights and size."""

    def __init__(self, checkpoint: Path | str, tokenizer: Path | str) -> None:
        """From ImageReward.pt and bert-base-uncased's tokenizer.

        Raises FileNotFoundError where a file is missing, ValueError where it is damaged or of another model.
        """
        source, state = f"checkpoint {checkpoint}", read_weights(checkpoint)
        vision = _vision(_below(state, _VISION, source), source)
        text = _text(_below(state, _TEXT, source), vision.config.hidden_size, source)
        head = ScoreHead(_below(state, _HEAD, source), source, _HEAD)
        if left := sorted(n for n in state if not n.startswith((_VISION, _TEXT, _HEAD)) and n not in _UNREAD):
            raise ValueError(f"{source} is not ImageReward's: {len(left)} unexpected: {listed(left)}")
        size = int(vision.config.image_size)
        parts = nn.ModuleDict({"vision": vision, "text": text, "head": head})
        super().__init__(parts, f"imagereward-v1.0-{weights_version(checkpoint)}-{size}px-crop")
        self._vision, self._text, self._head, self._image_size = vision, text, head, size
        self._tokenizer = _tokenizer(tokenizer, text.config.vocab_size)

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens = self._tokenise(prompts)
        vision = self._vision
        h = vision.embeddings(published_pixels(images, self._image_size, "crop"))
        patches = vision.post_layernorm(vision.encoder(inputs_embeds=h).last_hidden_state)  # [B, N, d]
        states = self._text(
            input_ids=tokens["input_ids"].to(self._device),
            attention_mask=tokens["attention_mask"].to(self._device),
            encoder_hidden_states=patches,
        ).last_hidden_state
        return (self._head(states[:, 0]) - MEAN) / STD

    def _tokenise(self, prompts: Sequence[str]) -> Any:
        """Ids and mask int64 [B, 35]. Raises ValueError naming the row of a prompt without a readable token."""
        for row, prompt in enumerate(prompts):
            check_prompt(prompt, row, self.name)
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        silent = torch.tensor([*self._tokenizer.all_special_ids])
        for row, ids in enumerate(tokens["input_ids"]):
            if bool(torch.isin(ids, silent).all()):
                raise ValueError(
                    f"prompt in row {row}, {prompts[row]!r}, has no token that {self.name} knows (it reads English)"
                )
        return tokens


def _below(state: dict[str, Tensor], prefix: str, source: str) -> dict[str, Tensor]:
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not part:
        raise ValueError(f"{source} is not ImageReward's: no name starts with {prefix}")
    return part


def _shape(state: dict[str, Tensor], name: str, dimensions: int, source: str) -> Sequence[int]:
    if name not in state or state[name].ndim != dimensions:
        raise ValueError(f"{source} is not ImageReward's: {name} is missing or not of {dimensions} dimensions")
    return state[name].shape


def _layers(state: dict[str, Tensor], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1)


def _vision(state: dict[str, Tensor], source: str) -> Any:
    width, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4, source)
    side = round((_shape(state, "pos_embed", 3, source)[1] - 1) ** 0.5)
    config = BlipVisionConfig(
        hidden_size=width, intermediate_size=_shape(state, "blocks.0.mlp.fc1.weight", 2, source)[0],
        num_hidden_layers=_layers(state, r"blocks\.(\d+)\."), num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=side * patch, patch_size=patch, hidden_act="gelu", layer_norm_eps=VIT_EPS,
        attn_implementation="eager",
    )  # fmt: skip
    model = BlipVisionModel(config)
    renamed = {_renamed(name): tensor for name, tensor in state.items()}
    load_strict(model, renamed, source, lambda name: _VISION + _renamed(name, to_file=True))
    return model


def _renamed(name: str, *, to_file: bool = False) -> str:
    """timm's name → transformers', or the other way round; one without a counterpart stays."""
    for pair in _VISION_NAMES:
        old, new = reversed(pair) if to_file else pair
        if match := re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name):
            return new.format(*match.groups()) + name[match.end() :]
    return name


def _text(state: dict[str, Tensor], vision_width: int, source: str) -> Any:
    vocabulary, width = _shape(state, "embeddings.word_embeddings.weight", 2, source)
    config = BlipTextConfig(
        vocab_size=vocabulary, hidden_size=width, encoder_hidden_size=vision_width,
        intermediate_size=_shape(state, "encoder.layer.0.intermediate.dense.weight", 2, source)[0],
        num_hidden_layers=_layers(state, r"encoder\.layer\.(\d+)\."), num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=_shape(state, "embeddings.position_embeddings.weight", 2, source)[0],
        hidden_act="gelu", layer_norm_eps=BERT_EPS, is_decoder=True, attn_implementation="eager",
    )  # fmt: skip
    model = BlipTextModel(config, add_pooling_layer=False)
    load_strict(model, state, source, lambda name: _TEXT + name)
    return model


def _tokenizer(folder: Path | str, vocabulary: int) -> Any:
    """BERT's tokenizer. BLIP adds [DEC] and [ENC] to the vocabulary; no prompt becomes either of them."""
    tokenizer = BertTokenizerFast.from_pretrained(folder_or_hub_id(folder, "BERT tokenizer"))
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ValueError(f"tokenizer in {folder} has token {largest}, the checkpoint's vocabulary has {vocabulary}")
    return tokenizer
