"""Reading a diffusers pipeline part by part, so that nothing is missing, left over or of another family unnoticed.

diffusers fills missing weights with random ones and warns; here both missing and surplus names are errors.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import SafetensorError

from configs.model import ModelSection
from reward.weights_file import check_whole, weight_files
from rollout.assets import SINGLE_FILE
from rollout.families.parts import module_classes, read_part
from rollout.families.single_file import read_single_file


def read_pipeline(
    classes: Sequence[Any],
    network_part: str,
    path: str,
    dtype: torch.dtype,
    absent: Mapping[str, Any],
    model: ModelSection | None,
) -> tuple[Any, int]:
    """The pipeline at `path`, and how many pixels one latent is wide.

    `path`: a directory, a hub id, or one .safetensors file (then `model.config` may name a directory or hub id with the
    pipeline's configuration and tokenizers). `absent`: components to leave out, by name. A network that is trained
    whole is read in float32, everything else in `dtype`.
    Raises ValueError naming file and names for a checkpoint that is damaged, incomplete or of another family.
    """
    given = dict(absent)
    network_dtype = torch.float32 if model is not None and model.trainable == "full" else dtype
    if model is not None and model.vae is not None and "vae" not in absent:
        given["vae"] = read_part(AutoencoderKL, model.vae, None, dtype)
    if path.endswith(SINGLE_FILE):
        pipeline, folder = read_single_file(classes[0], path, network_dtype, given, model)
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module) and name != network_part and network_dtype != dtype:
                part.to(dtype)
        return pipeline, _scale(AutoencoderKL.load_config(folder, subfolder="vae"))
    index = _read_index(path)
    chosen = _choose(classes, index, path)
    for name, part_class in module_classes(index).items():
        if name not in given:
            given[name] = read_part(part_class, path, name, network_dtype if name == network_part else dtype)
    try:
        pipeline = chosen.from_pretrained(path, dtype=dtype, **given)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"model.pretrained {path}: cannot be read as a {chosen.__name__}: {error}") from error
    if getattr(pipeline, network_part) is None:
        raise ValueError(f"model.pretrained {path} has no {network_part}")
    return pipeline, _scale(AutoencoderKL.load_config(path, subfolder="vae"))


def check_kind(classes: Sequence[Any], path: str) -> None:
    """Raise ValueError where `path` holds no pipeline, or one of another class than these."""
    _choose(classes, _read_index(path), path)


def check_weights(path: str, absent: Collection[str], vae: str | None) -> None:
    """Raise ValueError for a local file of weights that will be read and is not whole, by its header or directory.

    `absent`: parts that are not read. `vae`: where the autoencoder is read instead, if elsewhere.
    """
    folder = Path(path)
    files = [("model.pretrained", folder)] if path.endswith(SINGLE_FILE) and folder.is_file() else []
    if folder.is_dir():
        parts = set(module_classes(_read_index(path))) - set(absent) - ({"vae"} if vae else set())
        files += [("model.pretrained", file) for part in sorted(parts) for file in weight_files(folder / part)]
    if vae:
        files += [("model.vae", file) for file in weight_files(Path(vae))]
    for field, file in files:
        check_whole(file, field)


def check_tokenizers(pipeline: Any, path: str) -> None:
    """Raise ValueError for a tokenizer without padding or end, or with tokens that its text encoder has no row for."""
    for number in ("", "_2", "_3"):
        tokenizer = getattr(pipeline, f"tokenizer{number}", None)
        encoder = getattr(pipeline, f"text_encoder{number}", None)
        if tokenizer is None or encoder is None:
            continue
        place = f"{path}/tokenizer{number}"
        for name in ("pad_token", "eos_token"):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"{place}: the tokenizer has no {name}; prompts cannot be padded to one length")
        rows = encoder.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise ValueError(
                f"{place}: the tokenizer has {len(tokenizer)} tokens and text_encoder{number} has rows for {rows}; "
                "they belong to different models"
            )
        longest = getattr(encoder.config, "max_position_embeddings", None)
        if longest is not None and tokenizer.model_max_length > longest:
            raise ValueError(
                f"{place}: model_max_length is {tokenizer.model_max_length} and text_encoder{number} reads {longest} "
                "tokens at most; correct tokenizer_config.json"
            )


def _read_index(path: str) -> Mapping[str, Any]:
    if Path(path).is_dir() and not (Path(path) / "model_index.json").is_file():
        raise ValueError(f"model.pretrained {path}: no model_index.json there; it is not a diffusers pipeline")
    if path.startswith(("/", ".")) and not Path(path).exists():
        raise ValueError(f"model.pretrained {path}: there is no such file or directory")
    try:
        return dict(DiffusionPipeline.load_config(path))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"model.pretrained {path}: neither a local directory nor a model that the hub gives: {error}"
        ) from error


def _choose(classes: Sequence[Any], index: Mapping[str, Any], path: str) -> Any:
    found = index.get("_class_name")
    for known in classes:
        if known.__name__ == found:
            return known
    names = " or ".join(known.__name__ for known in classes)
    raise ValueError(
        f"model.pretrained {path} holds a {found}, which is another family than model.family says: that one reads "
        f"{names}. Set model.family to the checkpoint's"
    )


def _scale(vae_config: Mapping[str, Any]) -> int:
    return 2 ** (len(vae_config["block_out_channels"]) - 1)
