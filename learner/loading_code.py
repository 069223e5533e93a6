"""The lines of Python that load an exported LoRA or model with stock tools: for the console and the model card."""

from __future__ import annotations

import json

from configs.model import ModelSection
from rollout.assets import SINGLE_FILE

PIPELINES = {
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "pixart": "DiffusionPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}


def base_lines(model: ModelSection, base: str, pipeline: str | None = None) -> tuple[list[str], str]:
    """Names to import from diffusers, and the line that loads `base`: a directory, hub id or single file.

    `pipeline`: the class to name for a directory; unset, the family's. A single file of FLUX holds the network alone.
    """
    if not base.endswith(SINGLE_FILE):
        name = pipeline or PIPELINES[model.family]
        return [name], f"pipeline = {name}.from_pretrained({json.dumps(base)})"
    name, file, place = PIPELINES[model.family], json.dumps(base), json.dumps(model.config)
    if model.family != "flux":
        return [name], f"pipeline = {name}.from_single_file({file}, config={place})"
    network = "FluxTransformer2DModel"
    read = f'{network}.from_single_file({file}, config={place}, subfolder="transformer")'
    return [name, network], f"pipeline = {name}.from_pretrained({place}, transformer={read})"


def lora_lines(model: ModelSection, folder: str, file: str | None = None) -> list[str]:
    """What puts the LoRA in `folder` on the pipeline; for PixArt's, which diffusers has no loader for, peft does it."""
    if model.family == "pixart":
        place = "peft" if folder == "." else f"{folder}/peft"
        return [
            "from peft import PeftModel",
            f"pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, {json.dumps(place)})",
        ]
    named = "" if file is None else f", weight_name={json.dumps(file)}"
    return [f"pipeline.load_lora_weights({json.dumps(folder)}{named})"]
