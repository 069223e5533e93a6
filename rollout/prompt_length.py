"""Prompts that are longer than the text encoder reads: allowed, and said before the run starts."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import AutoTokenizer

from rollout.assets import pipeline_path


def overlong_note(pretrained: str, prompts: Sequence[str]) -> str | None:
    """A sentence about prompts whose end the model of `pretrained` will not see; None where there are none."""
    tokenizer = AutoTokenizer.from_pretrained(pipeline_path(pretrained), subfolder="tokenizer")
    limit = tokenizer.model_max_length
    cut = [prompt for prompt in prompts if len(tokenizer(prompt, verbose=False).input_ids) > limit]
    if not cut:
        return None
    which = "prompt is" if len(cut) == 1 else "prompts are"
    return f"{len(cut)} of {len(prompts)} {which} longer than {limit} tokens; the rest is cut, first of {cut[0][:60]!r}"
