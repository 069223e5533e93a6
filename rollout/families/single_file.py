"""A pipeline from one file in its authors' own layout, with every weight accounted for.

    file ─► per part: diffusers' converter ─► the part, nothing missing ─┐
      └───► tensors that no part took ─► an error that lists them        ├─► pipeline
    model.config ─► configuration, tokenizers, parts the file has not ───┘

diffusers leaves missing weights without data and drops surplus ones with at most a warning; `conversion.plan_part`
finds both before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file import load_single_file_sub_model
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor

from configs.model import ModelSection
from rollout.families.conversion import plan_part
from rollout.families.parts import listed, module_classes, read_part

_T5 = ("text_encoders.t5xxl.",)
_PREFIXES = {
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
}
"""Part -> where it is in a file, whatever the family; T5 is told by its class. Every other part is the network."""
_IDLE = re.compile(
    r"^(model_ema\.|first_stage_model\.loss\.|denoiser\.sigmas$)"  # a copy of the network; what trained the others
    r"|^((sqrt_|log_)?(one_minus_|recip_|recipm1_)*alphas_cumprod(_prev)?|betas|posterior_\w+|lvlb_weights|logvar)$"
    r"|\.(position_ids|attn_mask|logit_scale)$"  # constants, and the scale of CLIP's training loss
    r"|^cond_stage_model\.model\.text_projection$"  # SD 2.x reads the layer before the last, unprojected
    r"|^text_encoders\.clip_l\.(transformer\.)?text_projection(\.weight)?$"  # the identity; diffusers makes its own
)
"""Names that belong to no part of a pipeline and are known to be idle in sampling."""
_OPEN_CLIP_BLOCK = re.compile(r"^cond_stage_model\.model\.transformer\.resblocks\.(\d+)\.")
_ERRORS = (OSError, ValueError, KeyError, IndexError, RuntimeError, AttributeError, SafetensorError)


class MissingWeights(ValueError):
    """Weights of a part that a file does not hold."""


def read_single_file(
    pipeline_class: Any, path: str, dtype: torch.dtype, given: Mapping[str, Any], model: ModelSection | None
) -> tuple[Any, str]:
    """The pipeline in the file at `path`, and the directory with its configuration.

    `given`: parts to leave out (None) or to take instead of the file's. `model.config`: directory or hub id with the
    configuration, the tokenizers, and the parts that the file does not hold (FLUX's hold the network alone).
    Raises ValueError naming file, part and weights for a file that is damaged, incomplete, or holds more than is used.
    """
    if not Path(path).is_file():
        raise ValueError(f"model.pretrained {path}: there is no such file")
    if not hasattr(pipeline_class, "from_single_file"):
        raise ValueError(f"model.pretrained {path}: diffusers reads no single file as {pipeline_class.__name__}")
    try:
        checkpoint: dict[str, Tensor] = load_single_file_checkpoint(path, local_files_only=True)
    except _ERRORS as error:
        raise ValueError(
            f"model.pretrained {path}: cannot be read as one file of a {pipeline_class.__name__} (truncated?): {error}"
        ) from error
    source, folder = _configuration(checkpoint, path, model)
    index = pipeline_class.load_config(folder)
    parts, unread = dict(given), set(checkpoint)
    for name, part_class in module_classes(index).items():
        own = _prefixes(name, part_class)
        if name in given:
            unread -= {key for key in unread if own and key.startswith(own)}
        elif own and not any(key.startswith(own) for key in checkpoint):
            parts[name] = read_part(part_class, source, name, dtype)
        else:
            part, used = _read(name, part_class, index[name], checkpoint, folder, dtype, path)
            parts[name] = part
            unread -= used
    text = parts.get("text_encoder")
    _refuse_surplus({key for key in unread if not _idle(key, text)}, path, pipeline_class)
    return pipeline_class.from_pretrained(folder, dtype=dtype, **parts), folder


def _configuration(checkpoint: dict[str, Tensor], path: str, model: ModelSection | None) -> tuple[str, str]:
    """Where configuration and further parts come from (directory or hub id), and a directory with the configuration."""
    source = model.config if model is not None and model.config is not None else None
    if source is None:
        source = fetch_diffusers_config(dict(checkpoint))["pretrained_model_name_or_path"]
    if Path(source).is_dir():
        return source, source
    try:
        return source, snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.model"])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.pretrained {path}: its configuration and tokenizers, {source}, are not on this machine and cannot "
            f"be fetched ({type(error).__name__}). Name a directory that holds them in model.config"
        ) from error


def _read(
    name: str,
    part_class: Any,
    entry: list[str],
    checkpoint: Mapping[str, Tensor],
    folder: str,
    dtype: torch.dtype,
    path: str,
) -> tuple[Any, set[str]]:
    """A part, whole, and the names of the tensors that it was made of."""
    where = f"model.pretrained {path}: {name}"
    try:
        used, missing = plan_part(name, part_class, checkpoint, folder)
        if missing:
            raise MissingWeights(f"{where}: {len(missing)} weights missing: {listed(missing)}")
        part = load_single_file_sub_model(
            entry[0], entry[1], name, dict(checkpoint), diffusers.pipelines, False, folder, local_files_only=True,
            torch_dtype=dtype,
        )  # fmt: skip
    except MissingWeights:
        raise
    except _ERRORS as error:
        reason = f"weight missing: {error.args[0]}" if isinstance(error, KeyError) else str(error).split(". If you")[0]
        raise ValueError(
            f"{where} cannot be read as {entry[1]}: {reason}. The file is incomplete, or {folder} is another model's "
            "configuration"
        ) from error
    if empty := sorted(key for key, tensor in part.state_dict().items() if tensor.is_meta):
        raise ValueError(f"{where}: {len(empty)} weights missing: {listed(empty)}")
    return part, used


def _prefixes(name: str, part_class: Any) -> tuple[str, ...]:
    return _T5 if part_class.__name__ == "T5EncoderModel" else _PREFIXES.get(name, ())


def _idle(key: str, text: Any) -> bool:
    """Whether a tensor that no part took is known to be idle."""
    block = _OPEN_CLIP_BLOCK.match(key)
    beyond = block is not None and (text is None or int(block[1]) >= text.config.num_hidden_layers)
    return beyond or _IDLE.search(key) is not None


def _refuse_surplus(surplus: Collection[str], path: str, pipeline_class: Any) -> None:
    if surplus:
        raise ValueError(
            f"model.pretrained {path}: {len(surplus)} weights that this {pipeline_class.__name__} does not have: "
            f"{listed(sorted(surplus))}"
        )
