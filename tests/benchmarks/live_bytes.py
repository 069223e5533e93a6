"""Counts bytes of tensors while operations run, with or without data behind them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations have returned and that are still alive, and the most there have been."""

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        """`ignore`: tensors that were there before; a view of one is no allocation."""
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = {tensor.untyped_storage()._cdata for tensor in ignore}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._track, result)
        return result

    def _track(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self._alive:
            self._alive.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage.nbytes(), key)
        return tensor

    def _drop(self, nbytes: int, key: int) -> None:
        self.now -= nbytes
        self._alive.discard(key)
