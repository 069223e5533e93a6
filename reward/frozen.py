"""What the published scorers share: frozen weights, exact float32, checked inputs and outputs, prompts read once.

Scores do not depend on the batch beyond float32 rounding: pictures are prepared one by one, prompts are encoded alone,
and neither autocast nor TF32 is let in. A score that is not finite raises; nothing is ever scored 0 for want of one.

Shapes: B batch, P width of a shared space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from reward.base import Reads, check_inputs
from reward.step_aware import unit

_REMEMBERED_PROMPTS = 4096


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 and only deterministic convolutions inside: the same picture gives the same score."""
    with (
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        matmul = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)


class FrozenScorer(ABC):
    """`reward.base.Scorer` over a frozen float32 module that reads clean pictures: timesteps are checked, not used.

    Subclasses give `_scores`.
    """

    reads: Reads = "pixels"

    def __init__(self, module: nn.Module, name: str) -> None:
        self.name = name
        self._module = module.float().eval().requires_grad_(False)
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> FrozenScorer:
        """Move to a device, in place; returns itself."""
        self._device = torch.device(device)
        self._module.to(self._device)
        return self

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        """float32 [B] for images [B, 3, H, W] in [-1, 1] and B prompts; on the scorer's device.

        Raises ValueError where arguments break the contract or a prompt cannot be read (naming its row), and
        FloatingPointError for a score that is not finite.
        """
        check_inputs(images, prompts, timesteps)
        with exact_float32(self._device):
            scores = self._scores(images.to(self._device), prompts).float()
        return check_scores(scores, prompts, self.name)

    @abstractmethod
    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] of images on the scorer's device."""


def check_scores(scores: Tensor, prompts: Sequence[str], name: str) -> Tensor:
    """The scores [B], all finite. Raises FloatingPointError naming scorer, row and prompt."""
    if not bool(torch.isfinite(scores).all()):
        row = int((~torch.isfinite(scores)).nonzero()[0])
        raise FloatingPointError(f"{name} gives {float(scores[row])} in row {row}, prompt {prompts[row]!r}")
    return scores


def check_prompt(prompt: str, row: int, name: str) -> None:
    """Raises ValueError for a prompt of nothing but spaces: a scorer that compares with it has nothing to compare."""
    if not prompt.strip():
        raise ValueError(f"prompt in row {row} is empty; {name} scores a picture against its prompt")


class Towers(Protocol):
    """An image tower and a text tower that end in one space."""

    module: nn.Module

    def image_features(self, images: Tensor) -> Tensor:
        """[B, P] of images [B, 3, H, W] in [-1, 1]; preprocessing included."""
        ...

    def text_features(self, prompt: str) -> Tensor:
        """[P]. Raises ValueError for a prompt that cannot be read."""
        ...


class ContrastiveScorer(FrozenScorer):
    """score = scale · cos(image features, text features), in float32."""

    def __init__(self, towers: Towers, name: str, scale: Callable[[], float]) -> None:
        super().__init__(towers.module, name)
        self._towers = towers
        self._scale = scale
        self._text: OrderedDict[str, Tensor] = OrderedDict()

    def to(self, device: torch.device | str) -> ContrastiveScorer:
        """Move to a device, in place; returns itself."""
        self._text.clear()
        super().to(device)
        return self

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        text = torch.stack([self._read(prompt, row) for row, prompt in enumerate(prompts)])
        return self._scale() * (unit(self._towers.image_features(images)) * unit(text)).sum(dim=-1)

    def _read(self, prompt: str, row: int) -> Tensor:
        """[P]; each prompt is encoded alone, so that its features do not depend on which others came with it."""
        if prompt not in self._text:
            check_prompt(prompt, row, self.name)
            self._text[prompt] = self._towers.text_features(prompt)
        self._text.move_to_end(prompt)
        if len(self._text) > _REMEMBERED_PROMPTS:
            self._text.popitem(last=False)
        return self._text[prompt]
