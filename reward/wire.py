"""What a remote scorer and its server say to each other: JSON, pictures as base64 of 8-bit PNG. No pickle.

GET  /       → {"name": "pickscore-…", "reads": "pixels"}
POST /score  {"images": ["iVBOR…"], "prompts": ["a cat"], "timesteps": [0]} → {"name": "pickscore-…", "scores": [21.3]}
a bad request, a scorer that fails → status 400, 500 with {"error": "the reason"}
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reward.images import decode_image, image_tensor, png_bytes

MAX_REQUEST_BYTES = 512 * 1024**2
MAX_ANSWER_BYTES = 16 * 1024**2


def encode_request(images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> bytes:
    """The body of POST /score for images [B, 3, H, W] in [-1, 1]."""
    pictures = [base64.b64encode(png_bytes(image)).decode("ascii") for image in images]
    return json.dumps({"images": pictures, "prompts": list(prompts), "timesteps": timesteps.tolist()}).encode()


def decode_request(body: bytes) -> tuple[Tensor, list[str], Tensor]:
    """Images float32 [B, 3, H, W], prompts, timesteps int64 [B]. Raises ValueError naming the key and the row."""
    value = _mapping(body)
    images, prompts, timesteps = (_list(value, key) for key in ("images", "prompts", "timesteps"))
    if not len(images) == len(prompts) == len(timesteps) or not images:
        raise ValueError(
            f"{len(images)} images, {len(prompts)} prompts, {len(timesteps)} timesteps; give as many of each"
        )
    for row, (prompt, timestep) in enumerate(zip(prompts, timesteps, strict=True)):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts[{row}] is {prompt!r}; a text is wanted")
        if not isinstance(timestep, int) or isinstance(timestep, bool):
            raise ValueError(f"timesteps[{row}] is {timestep!r}; a whole number is wanted")
    pictures = [_picture(image, row) for row, image in enumerate(images)]
    if len(shapes := {picture.shape for picture in pictures}) > 1:
        raise ValueError(f"images differ in size ({len(shapes)} sizes); send pictures of one size together")
    return torch.stack(pictures), prompts, torch.tensor(timesteps, dtype=torch.int64)


def decode_scores(body: bytes, count: int) -> list[float]:
    """`count` finite scores of an answer. Raises ValueError saying what is wrong with it."""
    scores = _list(_mapping(body), "scores")
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} pictures")
    for row, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"scores[{row}] is {score!r}; a finite number is wanted")
    return [float(score) for score in scores]


def decode_description(body: bytes) -> str:
    """The scorer's name. Raises ValueError where it has none, or does not read pixels."""
    value = _mapping(body)
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"name is {name!r}; a text is wanted")
    if value.get("reads") != "pixels":
        raise ValueError(f"reads is {value.get('reads')!r}; only scorers that read pixels work from afar")
    return name


def _mapping(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}), begins {body[:60]!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}; an object is wanted")
    return value


def _list(value: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(value.get(key), list):
        raise ValueError(f"{key} is {type(value.get(key)).__name__}; a list is wanted")
    return value[key]


def _picture(text: Any, row: int) -> Tensor:
    if not isinstance(text, str):
        raise ValueError(f"images[{row}] is not base64 text")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"images[{row}] is not base64: {error}") from error
    return image_tensor(decode_image(data, name=f"images[{row}]"))
