"""Counts what a run computes: every picture that passes through the denoising network or through the decoder.

One evaluation is one row of a forward pass: guidance costs two. With gradients a row counts twice, since only
activations have gradients below an adapter (CPU time of forward and backward is 2.0 times that of forward). A decoding
is about as much work as a row of the miniature's network (0.51 and 0.46 GFLOP), so that both count alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder
from torch.nn.modules.module import register_module_forward_pre_hook


class Meter:
    """Counts all networks of this process between `__enter__` and `__exit__`, but for what runs `paused`."""

    def __init__(self) -> None:
        self.counts = {"network": 0, "network_trained": 0, "decoded": 0, "decoded_trained": 0}
        """Rows without and with gradients."""
        self._running = True

    @property
    def evaluations(self) -> int:
        """In all; a row with gradients counts twice."""
        counts = self.counts
        return counts["network"] + counts["decoded"] + 2 * (counts["network_trained"] + counts["decoded_trained"])

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._running = False
        try:
            yield
        finally:
            self._running = True

    def __enter__(self) -> Meter:
        self._handle = register_module_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _count(self, module: Any, inputs: tuple[Any, ...]) -> None:
        if self._running and isinstance(module, (UNet2DConditionModel, Decoder)):
            name = "network" if isinstance(module, UNet2DConditionModel) else "decoded"
            self.counts[f"{name}_trained" if torch.is_grad_enabled() else name] += len(inputs[0])
