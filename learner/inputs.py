"""What a run reads, looked at before anything starts: prompts, data set, the model's configuration, scorers' files."""

from __future__ import annotations

import sys

from configs.data import OnlineData
from configs.model import ModelSection
from configs.schema import AtelierConfig
from learner.own_process import in_own_process
from rollout.prompts import evaluation_prompts, load_prompts


class InputError(ValueError):
    """Something that the configuration names cannot be used. The message is for the console."""


def read_inputs(config: AtelierConfig) -> str | None:
    """Look at everything that the configuration names; what the user should know of it. Raises InputError."""
    try:
        online = isinstance(config.data, OnlineData)
        prompts = load_prompts(config.prompts.source, config.prompts.limit) if online else ()
        evaluation_prompts(config.evaluation)
        if "torch" in sys.modules:  # then another process would spare this one nothing
            return check_model(config, prompts)
        return in_own_process(check_model, config, prompts)  # the driver stays without the libraries that read models
    except (ValueError, ChildProcessError) as error:
        raise InputError(str(error)) from error


def check_model(config: AtelierConfig, prompts: tuple[str, ...]) -> str | None:
    """Data set, trained layers and a first LoRA fit the model, and nothing is cut short; what should be known of
    `prompts`. Raises ValueError."""
    from learner.datasets.offline import check_data
    from learner.export import trained_shapes
    from reward.scorer_files import check_scorer_files
    from rollout.families import FAMILIES
    from rollout.init_lora import check_init_lora
    from rollout.prompt_length import overlong_note

    check_data(config)
    family = FAMILIES[config.model.family]
    family.check_kind(config.model.pretrained)
    try:
        shapes = trained_shapes(config.model)  # reads the model's configuration, not its weights
    except (OSError, ValueError) as error:
        raise ValueError(f"{_model_words(config.model)}: {str(error).strip().splitlines()[0]}") from error
    family.check_weights(config.model)
    check_init_lora(config.model, shapes)
    check_scorer_files(config.rollout, "rollout")
    check_scorer_files(config.evaluation, "evaluation")
    return overlong_note(config.model, prompts)


def _model_words(model: ModelSection) -> str:
    """The settings that decide what is trained."""
    words = f"model.pretrained = {model.pretrained} with model.family = {model.family}"
    return words if model.trainable == "full" else f"{words}, model.lora.target_modules = {model.lora.target_modules}"
