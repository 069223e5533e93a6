"""Prompts that are longer than the text encoder reads: allowed, and said before the run starts."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DiffusionPipeline
from transformers import AutoTokenizer

from configs.model import ModelSection
from rollout.assets import configuration_place

_LONGEST = {
    "PixArtAlphaPipeline": ("tokenizer", 120),
    "PixArtSigmaPipeline": ("tokenizer", 300),
    "StableDiffusion3Pipeline": ("tokenizer_3", 256),
    "FluxPipeline": ("tokenizer_2", 512),
}
"""Pipeline -> the tokenizer that reads furthest, and how many tokens its `encode_prompt` takes; else CLIP's own."""


def overlong_note(model: ModelSection, prompts: Sequence[str]) -> str | None:
    """A sentence about prompts whose end the model will not see; None where there are none.

    Raises ValueError where there is no tokenizer.
    """
    place = configuration_place(model)
    name, longest = "tokenizer", None
    if model.t5:
        pipeline = DiffusionPipeline.load_config(place).get("_class_name")
        name, longest = _LONGEST.get(pipeline, (name, None))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, subfolder=name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{place}/{name}: no tokenizer can be read there: {str(error).splitlines()[0]}") from error
    limit = min(tokenizer.model_max_length, longest or tokenizer.model_max_length)
    cut = [prompt for prompt in prompts if len(tokenizer(prompt, verbose=False).input_ids) > limit]
    if not cut:
        return None
    which = "prompt is" if len(cut) == 1 else "prompts are"
    return f"{len(cut)} of {len(prompts)} {which} longer than {limit} tokens; the rest is cut, first of {cut[0][:60]!r}"
