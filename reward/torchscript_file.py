"""Tensors out of a TorchScript archive (OpenAI's ViT-L-14.pt), without running anything that is in it.

`torch.jit.load` compiles and may run the program that such an archive is. Here its code is never opened: the archive is
a zip; `<name>/data.pkl`, the module's attributes, goes through an unpickler that knows a fixed list of names and
refuses all others, and `<name>/data/N` are the tensors' bytes. Modules become plain mappings, whatever their class.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_CODE_FILE = "constants.pkl"  # TorchScript archives have it, torch.save's have not


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(f"/{_CODE_FILE}") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Dotted name → tensor of every tensor in the archive's modules, parameters and buffers alike.

    Raises ValueError for a damaged archive, or one that holds more than modules, tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            module = _Unpickler(archive, root).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, RuntimeError, TypeError) as error:
        raise ValueError(f"checkpoint {path} cannot be read as a TorchScript archive: {error}") from error
    found: dict[str, Tensor] = {}
    _collect(module, "", found)
    if not found:
        raise ValueError(f"checkpoint {path} is a TorchScript archive without tensors")
    return found


class _Module(dict[str, Any]):
    """Stands for an object of any class of the archive: its attributes."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, Mapping):
            raise pickle.UnpicklingError(f"a module of {type(state).__name__} with a __setstate__ of its own")
        self.update(state)


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        known = _KNOWN.get((module, name))
        if known is None and module == "torch" and name in _DTYPES:
            known = _DTYPES[name]
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")
        return known

    def persistent_load(self, key: Any) -> Tensor:
        """The storage `key` as a flat tensor: ("storage", dtype, number, device, elements)."""
        _, dtype, number, _, _ = key
        data = self._archive.read(f"{self._root}/data/{number}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _rebuilt(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _first(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("torch.jit._pickle", name): _first
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}


def _root(archive: zipfile.ZipFile) -> str:
    roots = {name.partition("/")[0] for name in archive.namelist() if name.endswith("/data.pkl")}
    if len(roots) != 1:
        raise ValueError(f"a TorchScript archive has one data.pkl, this one has {len(roots)}")
    return roots.pop()


def _collect(value: Any, prefix: str, found: dict[str, Tensor]) -> None:
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        if isinstance(inner, Tensor):
            found[prefix + str(name)] = inner
        else:
            _collect(inner, f"{prefix}{name}.", found)
