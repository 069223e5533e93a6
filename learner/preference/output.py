"""The model before and after training, as files.

run.dir/spm/   step_aware.safetensors   the authors' names, as released checkpoints have them
               config.json, tokenizer   what else `rollout.scorer.clip` needs: point it at this directory
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from configs.spm import SpmConfig
from reward import step_aware_files
from reward.step_aware import WEIGHTS, StepAwarePreferenceModel
from reward.step_aware_scorer import load_tokenizer


def load_start(config: SpmConfig) -> tuple[StepAwarePreferenceModel, PreTrainedTokenizerBase]:
    """The model that training starts from, float32 on the CPU, and its tokenizer.

    Raises FileNotFoundError and ValueError for weights or a tokenizer that do not fit, naming file and keys.
    """
    clip, checkpoint = step_aware_files(config.scorer.clip, config.scorer.checkpoint)
    model = StepAwarePreferenceModel.from_pretrained(clip, checkpoint)
    return model, load_tokenizer(clip, model)


def reshape_scale(model: StepAwarePreferenceModel, *shape: int) -> None:
    """Give logit_scale this shape: [1] for an engine (DeepSpeed cannot broadcast a scalar), none in checkpoints."""
    scale = model.model.logit_scale
    model.model.logit_scale = nn.Parameter(scale.detach().reshape(shape), requires_grad=scale.requires_grad)


def write_model(model: StepAwarePreferenceModel, config: SpmConfig) -> Path:
    """Write weights, CLIP configuration and tokenizer to `run.dir/spm`; the weights last, whole or not at all.

    Ends training: an engine over the model no longer holds its logit_scale.
    """
    clip, _ = step_aware_files(config.scorer.clip, config.scorer.checkpoint)
    folder = config.output
    folder.mkdir(parents=True, exist_ok=True)
    model.model.config.save_pretrained(folder)
    load_tokenizer(clip, model).save_pretrained(folder)
    reshape_scale(model)
    model.save_checkpoint(folder / WEIGHTS)
    return folder
