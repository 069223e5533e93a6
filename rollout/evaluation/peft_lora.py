"""A LoRA put on and taken off a network whose pipeline diffusers has no LoRA loader for (PixArt).

peft does both, as diffusers' own loaders have it do. Shapes: a layer's A is [rank, in], its B [out, rank].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor

_ADAPTER = "evaluated"
_HALVES = (".lora_A.weight", ".lora_B.weight")


def attach(network: Any, state: Mapping[str, Tensor], prefix: str) -> None:
    """Put on the LoRA `state` of diffusers' names (`<prefix>.<layer>.lora_A.weight`), whose B holds alpha / rank.

    Raises ValueError, naming it, for a tensor that is no half of a LoRA, and what peft raises where one does not fit.
    """
    own = {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items()}
    if strange := sorted(name for name in own if not name.endswith(_HALVES)):
        raise ValueError(f"{strange[0]} is neither lora_A nor lora_B of a layer")
    ranks = {name.removesuffix(_HALVES[0]): len(down) for name, down in own.items() if name.endswith(_HALVES[0])}
    if halved := sorted(set(own) ^ {layer + half for layer in ranks for half in _HALVES}):
        raise ValueError(f"layer of {halved[0]} lacks its other half")
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {layer: own_rank for layer, own_rank in ranks.items() if own_rank != rank}
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(ranks), rank_pattern=others, alpha_pattern=dict(others)
    )
    inject_adapter_in_model(config, network, _ADAPTER)
    set_peft_model_state_dict(network, own, _ADAPTER)


def detach(network: Any) -> None:
    """Take it off: the network is the base again."""
    recurse_remove_peft_layers(network)
    if hasattr(network, "peft_config"):
        del network.peft_config
