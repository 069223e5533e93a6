"""The model card of an exported LoRA or model: what it is, how to load it, what it was trained with and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from configs.data import OnlineData
from configs.model import FLOW_FAMILIES
from configs.schema import AtelierConfig
from configs.scorers import StepAwareScorer
from learner.loading_code import base_lines, lora_lines
from rollout.assets import MINIATURE

_MINIATURE_PLACE = "rollout/miniature/pipeline"  # where the bundled model lies in the repository
METHODS = {
    "spo": "step-wise preference optimisation (SPO)",
    "d3po": "D3PO",
    "ddpo": "DDPO",
    "simpo": "SimPO",
    "dpo": "Diffusion-DPO",
    "mapo": "MaPO",
    "sft": "supervised fine-tuning",
}
"""`learner.objective.type` in words."""
_ROLLED_OUT = {
    "stepwise": "pairs of denoising steps",
    "final_pairs": "finished pictures",
    "trajectory": "whole trajectories",
}
_ON_DISK = {"pairs": "preference pairs of a data set", "images": "captioned pictures of a data set"}


def model_card(
    config: AtelierConfig,
    *,
    adapter_sha256: str,
    steps: int,
    before: Mapping[str, float],
    after: Mapping[str, float],
    without_kohya: str | None,
) -> str:
    """Markdown with the hub's front matter.

    `before` and `after`: metric -> value on the same prompts and seeds. `without_kohya`: why there is no file under
    kohya's names, None where there is one.
    """
    name, full = config.run.name, config.model.trainable == "full"
    base = _MINIATURE_PLACE if config.model.pretrained == MINIATURE else config.model.pretrained
    what = f"`{base}`, every weight of its network" if full else f"A LoRA for `{base}`,"
    return "\n".join(
        [
            _front_matter(base, "full-fine-tuning" if full else "lora"),
            f"# {name}\n",
            f"{what} post-trained to a taste by {_method(config)}: {steps} optimiser steps on {_source(config)}.\n",
            f"{'Network' if full else 'Adapter'} sha256: `{adapter_sha256}`\n",
            _usage(config, base, without_kohya),
            "## Results\n",
            _results(config, before, after),
            "## Settings\n",
            _settings(config, steps),
            "<details><summary>The whole configuration</summary>\n",
            f"```json\n{_configuration(config)}\n```\n\n</details>\n",
        ]
    )


def _method(config: AtelierConfig) -> str:
    if config.learner.objective.type == "spo" and getattr(config.rollout.sampler, "block_length", 1) > 1:
        return "multi-step preference optimisation (MSPO)"
    return METHODS[config.learner.objective.type]


def _source(config: AtelierConfig) -> str:
    if not isinstance(config.data, OnlineData):
        return _ON_DISK[config.data.type]
    scorer = config.rollout.scorer
    judge = f"the scorer `{scorer.type}`"
    if isinstance(scorer, StepAwareScorer):
        trained = scorer.checkpoint is not None or scorer.clip == MINIATURE
        judge = "a step-aware preference model" if trained else "a CLIP preference model"
    return f"{_ROLLED_OUT[config.rollout.sampler.type]} that the model drew itself and {judge} judged"


def _front_matter(base: str, tag: str) -> str:
    """Parsed by the hub: json.dumps quotes what YAML would misread."""
    return (
        f"---\nbase_model: {json.dumps(base)}\nlibrary_name: diffusers\n"
        f"tags: [{tag}, text-to-image, preference-optimization]\n---\n"
    )


def _usage(config: AtelierConfig, base: str, without_kohya: str | None) -> str:
    noise, model = config.noise, config.model
    full, ddim = model.trainable == "full", model.family not in FLOW_FAMILIES
    names, load_base = base_lines(model, "." if full else base)
    *imports, load = lora_lines(model, ".", "pytorch_lora_weights.safetensors")
    lines = [
        f"from diffusers import {', '.join(['DDIMScheduler'] * ddim + names)}",
        *([] if full else imports),
        "",
        load_base,
    ]
    if ddim:
        lines.append("pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)")
    eta = f", eta={noise.eta}" if ddim else ""
    lines += [
        *([] if full else [load]),
        "image = pipeline(",
        f'    "a prompt", num_inference_steps={noise.num_steps}, guidance_scale={noise.guidance_scale}{eta}',
        ").images[0]",
    ]
    code = "\n".join(lines)
    return f"""## Use

diffusers, in the folder that holds this file:

```python
{code}
```

{_elsewhere(config, without_kohya)}
"""


def _elsewhere(config: AtelierConfig, without_kohya: str | None) -> str:
    if config.model.trainable == "full":
        return (
            "The folder is a complete pipeline in float32 (`dtype=` of `from_pretrained` loads it narrower). There is\n"
            f"no safety checker, and no file under kohya's names: {without_kohya}."
        )
    if without_kohya is None:
        return (
            f"ComfyUI, AUTOMATIC1111 and others that read kohya's names: put `kohya/{config.run.name}.safetensors` "
            "into their folder\nfor LoRAs (`models/loras` in ComfyUI) and load it with strength 1. Both files hold the "
            "same weights."
        )
    if config.model.family == "pixart":
        return "diffusers has no LoRA loader for PixArt's pipelines; peft puts the adapter on their transformer."
    return (
        f"There is no file under kohya's names: {without_kohya}. ComfyUI reads "
        "`pytorch_lora_weights.safetensors` as it is:\nput it into `models/loras`, with strength 1."
    )


def _results(config: AtelierConfig, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    evaluation = config.evaluation
    rows = [
        f"| {metric} | {before[metric]:.4g} | {after[metric]:.4g} | {after[metric] - before[metric]:+.4g} |\n"
        for metric in before
        if metric in after
    ]
    aim = "The reward is what the training aimed at; the other measures were not part of it."
    if not isinstance(config.data, OnlineData):
        aim = "No measure was part of the training."
    return (
        f"On the first {evaluation.num_prompts} held-out prompts, seeds {evaluation.seed} onwards, the same before and "
        f"after. {aim}\n\n"
        "| measure | before | after | difference |\n|---|---:|---:|---:|\n" + "".join(rows)
    )


def _settings(config: AtelierConfig, steps: int) -> str:
    lora, learner, sampler, noise = config.model.lora, config.learner, config.rollout.sampler, config.noise
    online = isinstance(config.data, OnlineData)
    trained = {
        "rank, alpha": f"{lora.rank}, {lora.scale_numerator:g}",
        "target modules": ", ".join(lora.target_modules),
    }
    rows = {
        "optimiser steps": steps,
        **({"trained": "every weight of the network"} if config.model.trainable == "full" else trained),
        "learning rate": f"{learner.optimizer.lr:g}, {learner.optimizer.decay}",
        "objective": _listed(learner.objective.model_dump()),
        "prompts in a batch": learner.groups_per_batch,
        **({"sampling": _listed(sampler.model_dump()), "schedule": config.schedule.type} if online else {}),
        "denoising steps, eta, guidance": f"{noise.num_steps}, {noise.eta:g}, {noise.guidance_scale:g}",
        "seed": config.run.seed,
    }
    lines = [f"| {key} | {value} |\n" for key, value in rows.items()]
    return "| setting | value |\n|---|---|\n" + "".join(lines)


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)


def _configuration(config: AtelierConfig) -> str:
    """Everything but the run's directory, which means nothing elsewhere."""
    dump = config.model_dump(mode="json")
    dump["run"].pop("dir")
    return json.dumps(dump, indent=1)
