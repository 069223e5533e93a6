"""What diffusers' converters of single files read, and what they leave out, without any weight in memory.

A converter does not say which tensors it reads. Those of transformers take them out of the mapping they are given: they
are run on tensors without data. The others are run on tensors that each repeat one number, their own, without storage:
the numbers that arrive say which were read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from torch import Tensor

_NETWORK = "model.diffusion_model."
_OPEN_CLIP = {"text_encoder": "cond_stage_model.model.", "text_encoder_2": "conditioner.embedders.1.model."}
_HUGGING_FACE = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": ("text_encoders.clip_g.transformer.",),
}
_T5 = ("text_encoders.t5xxl.transformer.",)
_MADE_UP = {"text_encoder": "text_projection.weight"}
"""SD3's files have no projection of the first CLIP: it is the identity, and diffusers makes it."""


def plan_part(name: str, part_class: Any, checkpoint: Mapping[str, Tensor], folder: str) -> tuple[set[str], list[str]]:
    """The tensors of a file that a part is made of, and the part's own weights that the file does not give.

    Raises what the converter raises: KeyError naming a tensor that it wants, ValueError for shapes that do not fit.
    """
    with torch.device("meta"):
        part = _empty(name, part_class, folder)
    wanted = set(part.state_dict())
    if issubclass(part_class, ModelMixin) and name == "transformer":
        remaining = {key: torch.empty(tensor.shape, device="meta") for key, tensor in checkpoint.items()}
        given = _convert(name, part, remaining)
        used = {k for k in checkpoint if k not in remaining and k.removeprefix(_NETWORK) not in remaining}
    else:
        names = list(checkpoint)
        one = {key: torch.tensor(n, dtype=torch.int16).expand(checkpoint[key].shape) for n, key in enumerate(names)}
        given = _convert(name, part, one)
        used = {names[n] for key in wanted & given.keys() for n in _numbers(given[key])}
    return used, sorted(wanted - given.keys() - {_MADE_UP.get(name, "")})


def _empty(name: str, part_class: Any, folder: str) -> Any:
    if issubclass(part_class, ModelMixin):
        return part_class.from_config(part_class.load_config(folder, subfolder=name))
    return part_class(part_class.config_class.from_pretrained(folder, subfolder=name))


def _convert(name: str, part: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part's own names -> tensors."""
    if isinstance(part, ModelMixin):
        convert = SINGLE_FILE_LOADABLE_CLASSES[type(part).__name__]["checkpoint_mapping_fn"]
        return dict(convert(checkpoint=tensors, config=dict(part.config)))
    open_clip = _OPEN_CLIP.get(name)
    if type(part).__name__ == "T5EncoderModel":
        found = _below(tensors, _T5)
    elif open_clip is not None and any(key.startswith(open_clip) for key in tensors):
        found = convert_open_clip_checkpoint(part, tensors, prefix=open_clip)
    else:
        found = _below(tensors, _HUGGING_FACE[name])
    if not hasattr(part, "text_model"):  # transformers 5.6 took this level out of CLIPTextModel
        found = {key.removeprefix("text_model."): tensor for key, tensor in found.items()}
    return found


def _below(tensors: Mapping[str, Tensor], prefixes: Collection[str]) -> dict[str, Tensor]:
    return {key.removeprefix(p): tensor for key, tensor in tensors.items() for p in prefixes if key.startswith(p)}


def _numbers(tensor: Tensor) -> set[int]:
    """The first and the last element; no weight is made of more than one tensor."""
    if not tensor.numel():
        return set()
    return {int(tensor[(0,) * tensor.dim()]), int(tensor[(-1,) * tensor.dim()])}
