"""The step-aware preference model as a scorer: tokenises, remembers prompts, scores in batches without gradients.

Known taste: that of the pairs it was trained on; started from PickScore and trained on Pick-a-Pic, that of
`reward/pickscore.py`. Its paper argues that, between candidates of one step, which share their layout, what decides is
detail (arXiv:2406.04314).

Shapes: B batch, L tokens, P width of the shared space.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from reward.base import Reads, check_inputs
from reward.frozen import check_prompt, check_scores, exact_float32
from reward.preprocess import clip_pixels
from reward.step_aware import StepAwarePreferenceModel
from reward.weights_file import folder_or_hub_id, weights_version

_REMEMBERED_PROMPTS = 4096


def load_tokenizer(clip_dir: Path | str, model: StepAwarePreferenceModel) -> PreTrainedTokenizerBase:
    """The CLIP tokenizer of `clip_dir`, its maximum length set to what both it and the model can take.

    Raises:
        ValueError: its vocabulary is larger than the model's, or it ends prompts with a token that the model does not
            pool at.
    """
    return fitting_tokenizer(clip_dir, model.model.config.text_config)


def fitting_tokenizer(clip_dir: Path | str, text_config: Any) -> PreTrainedTokenizerBase:
    """`load_tokenizer` for the text tower that HF's `text_config` describes."""
    config = text_config
    tokenizer = CLIPTokenizer.from_pretrained(folder_or_hub_id(clip_dir, "CLIP tokenizer"))
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    largest, end = max(tokenizer.get_vocab().values()), tokenizer.eos_token_id
    if largest >= config.vocab_size:
        raise ValueError(f"tokenizer in {clip_dir} has token {largest}, the model's vocab_size is {config.vocab_size}")
    # HF pools at the highest id where the config still has the early default eos_token_id 2, else at eos_token_id.
    pooled_at = largest if config.eos_token_id == 2 else config.eos_token_id
    if end != pooled_at:
        raise ValueError(f"tokenizer in {clip_dir} ends prompts with token {end}, the model pools at token {pooled_at}")
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """int64 [B, L], padded to the tokenizer's maximum; longer prompts are cut, as in every CLIP.

    Raises:
        ValueError: a prompt has characters that the tokenizer lacks. CLIP's unknown token is its end-of-text token, so
            the rest of the prompt would go unread.
    """
    length = tokenizer.model_max_length
    encoded = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    for prompt, ids, mask in zip(prompts, encoded["input_ids"], encoded["attention_mask"], strict=True):
        if (ids[mask.bool()][:-1] == tokenizer.eos_token_id).any():
            raise ValueError(f"prompt {prompt!r} has an end-of-text token, or a character the tokenizer does not know")
    return encoded["input_ids"]


class StepAwareScorer:
    """`Scorer` over a frozen `StepAwarePreferenceModel`; reads pixels."""

    reads: Reads = "pixels"

    def __init__(self, model: StepAwarePreferenceModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._text: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(cls, clip_dir: Path | str, checkpoint: Path | str | None = None) -> StepAwareScorer:
        """Load model and tokenizer; errors as `StepAwarePreferenceModel.from_pretrained` and `load_tokenizer`.

        The name holds the CLIP's name, 8 hex digits of the checkpoint's SHA-256 (or `start`) and the image size.
        """
        model = StepAwarePreferenceModel.from_pretrained(clip_dir, checkpoint)
        version = "start" if checkpoint is None else weights_version(checkpoint)
        name = f"step_aware-{Path(clip_dir).name}-{version}-{model.image_size}px"
        return cls(model, load_tokenizer(clip_dir, model), name)

    def to(self, device: torch.device | str) -> StepAwareScorer:
        """Move to a device, in place; returns itself."""
        self._model.to(device)
        self._text.clear()
        return self

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        """float32 [B] for images [B, 3, H, W] in [-1, 1], B prompts and timesteps int64 [B]; on the model's device.

        Raises ValueError where the arguments break the contract or a prompt cannot be read (naming an empty one's row),
        and FloatingPointError for a score that is not finite.
        """
        check_inputs(images, prompts, timesteps)
        device = self._model.model.logit_scale.device
        with exact_float32(device):
            text = torch.stack([self._text_features(prompt, row) for row, prompt in enumerate(prompts)])
            pixels = clip_pixels(images.to(device), self._model.image_size)
            scores = self._model.score_features(self._model.image_features(pixels, timesteps.to(device)), text)
        return check_scores(scores, prompts, self.name)

    def _text_features(self, prompt: str, row: int) -> Tensor:
        """[P]. Each prompt is encoded alone: its features then do not depend on which others came with it, so a resumed
        run repeats an uninterrupted one bit for bit whatever was remembered."""
        if prompt not in self._text:
            check_prompt(prompt, row, self.name)
            ids = tokenize(self._tokenizer, [prompt]).to(self._model.model.logit_scale.device)
            self._text[prompt] = self._model.text_features(ids)[0]
        self._text.move_to_end(prompt)
        if len(self._text) > _REMEMBERED_PROMPTS:
            self._text.popitem(last=False)
        return self._text[prompt]
