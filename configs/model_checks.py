"""What the model's settings rule out, among themselves and in other sections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from configs.model import FLOW_FAMILIES, LoraSection

if TYPE_CHECKING:
    from configs.schema import AtelierConfig


def _family_fits_the_settings(config: AtelierConfig) -> Iterator[str]:
    family, objective = config.model.family, config.learner.objective
    if family in FLOW_FAMILIES and objective.type != "spo":
        yield (
            f"learner.objective.type = {objective.type} with model.family = {family}: that loss is written for noise "
            "predictions and for steps that all have noise, and a flow has neither. Set learner.objective.type to spo, "
            "or train a diffusion family."
        )
    if family in FLOW_FAMILIES and getattr(objective, "pixel", None) is not None:
        yield (
            f"learner.objective.pixel with model.family = {family}: the pixel term reads predictions of noise, and a "
            "flow predicts a velocity. Leave pixel out, or train a diffusion family."
        )
    if family == "flux" and config.noise.negative_prompt:
        yield (
            f"noise.negative_prompt = {config.noise.negative_prompt!r} with model.family = flux: FLUX's guidance is an "
            "input of its network and has no negative prompt. Leave it empty."
        )
    if not config.model.t5 and family != "sd3":
        yield f"model.t5 = false with model.family = {family}: only sd3 works without T5. Leave model.t5 true."


def _all_of_it_or_an_adapter(config: AtelierConfig) -> Iterator[str]:
    model, standard = config.model, LoraSection()
    if model.trainable != "full":
        return
    for name in LoraSection.model_fields:
        if (value := getattr(model.lora, name)) != getattr(standard, name):
            yield (
                f"model.lora.{name} = {value} with model.trainable = full: every weight of the network is trained, and "
                f"there is no adapter that it could describe. Set model.lora to {{}}, or model.trainable to lora."
            )
    if model.init_lora is not None and model.init_lora_mode == "adapter":
        yield (
            f"model.init_lora = {model.init_lora} and model.init_lora_mode = adapter with model.trainable = full: "
            f"there is no adapter to start in. Set init_lora_mode to merged, which adds it to the network before "
            f"training."
        )
    if model.dtype == "float16":
        yield (
            "model.dtype = float16 with model.trainable = full: gradients of the whole network underflow in float16 "
            "without loss scaling, which there is none of here. Set dtype to bfloat16 or float32."
        )


MODEL_CHECKS: tuple[Callable[[AtelierConfig], Iterator[str]], ...] = (
    _family_fits_the_settings,
    _all_of_it_or_an_adapter,
)
