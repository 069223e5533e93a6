"""One component of a pipeline, with exactly the weights that it needs.

diffusers fills missing weights with random ones and warns; here both missing and surplus names are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
_SHOWN = 5


def module_classes(index: Mapping[str, Any]) -> dict[str, Any]:
    """Component -> class, of those in a model_index.json that have weights."""
    found = {}
    for name, entry in index.items():
        if isinstance(entry, list | tuple) and entry[0] in _LIBRARIES:
            part_class = getattr(_LIBRARIES[entry[0]], entry[1], None)
            if isinstance(part_class, type) and issubclass(part_class, torch.nn.Module):
                found[name] = part_class
    return found


def read_part(part_class: Any, path: str, subfolder: str | None, dtype: torch.dtype) -> Any:
    """One component, with exactly the weights that it needs. Raises ValueError naming file and weights."""
    place = path if subfolder is None else f"{path}/{subfolder}"
    options = {} if subfolder is None else {"subfolder": subfolder}
    try:
        part, info = part_class.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{place}: cannot be read as {part_class.__name__}: {error}") from error
    for kind, said in (("missing_keys", "missing"), ("unexpected_keys", "that this model does not have")):
        if names := sorted(info.get(kind) or ()):
            raise ValueError(f"{place}: {len(names)} weights {said}: {listed(names)}")
    return part


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
