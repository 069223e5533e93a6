"""A second device on a machine that has none: its tensors hold their data on the CPU, and say that they are elsewhere.

As on a GPU, an operation on tensors of both devices is an error, and so are `numpy()` and a CPU's generator. Operations
compute on what the tensors hold, so values are a CPU's. It cannot be taken back: it is for a process of its own.

    torch operation ─► Elsewhere.__torch_dispatch__ ─┐
    torch.empty(device="emulated") ─► fallback ──────┴► run: what is held ─► the CPU's kernel ─► Elsewhere
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

NAME = "emulated"
MAY_MIX = ("aten::copy_", "aten::_copy_from", "aten::index", "aten::index_put", "aten::index_put_")
"""Operations that CUDA, too, gives tensors of both devices: copies, and indices that lie on the CPU."""


class Elsewhere(Tensor):
    """`held` on the emulated device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        self = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=f"{NAME}:0"
        )
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return run(op, *args, **(kwargs or {}))

    def __repr__(self) -> str:
        return f"Elsewhere({self.held})"


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """`op` on what the arguments hold. Raises RuntimeError where one of them is a tensor of the CPU."""
    name, on_cpu = op._schema.name, []

    def unwrap(value: Any) -> Any:
        if isinstance(value, torch.Generator):
            raise RuntimeError(f"{op}: a generator of the CPU for tensors that are not")
        if isinstance(value, Tensor):
            if isinstance(value, Elsewhere):
                return value.held
            if value.dim() > 0:  # single numbers may come from the CPU
                on_cpu.append(tuple(value.shape))
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    inner_args, inner_kwargs = tree_map(unwrap, (args, kwargs))
    if on_cpu and name not in MAY_MIX:
        raise RuntimeError(f"{op}: tensors on two devices, on the CPU {on_cpu}")
    result = op(*inner_args, **inner_kwargs)
    if name == "aten::_to_copy" and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu":
        return result.clone()  # else it may be what is held
    return _given_back(op, args, kwargs, result)


def _given_back(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
    """The results on the device; where the schema says that an argument is written, that argument."""
    written = {}
    for place, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            written[frozenset(argument.alias_info.before_set)] = value

    def back(spec: Any, value: Any) -> Any:
        if spec.alias_info is not None and spec.alias_info.is_write:
            return written[frozenset(spec.alias_info.before_set)]
        return tree_map(lambda part: Elsewhere(part) if isinstance(part, Tensor) else part, value)

    specs = op._schema.returns
    if len(specs) == 1:
        return back(specs[0], result)
    return tuple(back(spec, value) for spec, value in zip(specs, result or (), strict=True))


class _PythonFrontEnd(TorchFunctionMode):
    """What torch does in Python or before it dispatches, where a tensor class without a storage is not enough."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and _is_here(kwargs.get("device")):
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function == Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].held.tolist()
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Elsewhere):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
            return function(args[0], index, *args[2:], **kwargs)
        result = function(*args, **kwargs)
        if function == Tensor.data.__set__ and isinstance(args[1], Elsewhere):  # type: ignore[attr-defined]
            args[0].held = args[1].held
        return result


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


class _Module:
    """What torch asks of a device: there is one, ready, and autocast may use bfloat16."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    set_device = manual_seed_all = staticmethod(lambda _: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


_kept: list[Any] = []
"""Registrations last as long as these."""


def set_up() -> torch.device:
    """Register the device with torch, for the rest of this process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(run, "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    front_end = _PythonFrontEnd()
    front_end.__enter__()
    _kept.extend((library, front_end))
    return torch.device(NAME, 0)
