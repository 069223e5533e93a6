"""Which weights of the denoising network are trained, and what the reference is then.

    lora   an adapter on the layers that model.lora names; the reference is the network with the adapter switched off
    full   every parameter of the network; the reference is a frozen copy of where it started, through the same code

Trained weights are float32 in both cases. A network that is trained whole computes in model.dtype by torch.autocast,
inside its own `forward`: DeepSpeed switches off an autocast that surrounds its engine, and the sampler must compute as
the learner does. Its copy keeps float32 weights too, so that the ratio of the two is 1 before the first update.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Protocol

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from configs.model import LoraSection

ADAPTER_NAME = "default"


class NetworkHolder(Protocol):
    """Where a policy looks its network up (`rollout.families.Family`)."""

    network: Any


class TrainedWeights(Protocol):
    """The trained part of a network."""

    foreign: ClassVar[str]
    """What weights that do not fit are called in messages."""

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """Every trained parameter, sorted by name; names are the same in every process."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the policy's network is the frozen reference."""
        ...


class LoraWeights:
    """An adapter, made by `add_lora` or loaded by diffusers; names are peft's without the adapter's own."""

    foreign: ClassVar[str] = "adapter of another model or rank"

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def named(self) -> list[tuple[str, nn.Parameter]]:
        named = [(name, p) for name, p in self._network.named_parameters() if ".lora_" in name]
        return sorted((name.replace(f".{ADAPTER_NAME}.", "."), p) for name, p in named)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The flag is set on the layers themselves: peft's public switch also toggles requires_grad, which would detach
        the hooks that a training engine has put on the adapter's parameters."""
        layers = [module for module in self._network.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False


class FullWeights:
    """Every parameter of a network, and a frozen copy of them where a reference is needed."""

    foreign: ClassVar[str] = "network of another model"

    def __init__(self, holder: NetworkHolder, dtype: torch.dtype, device: torch.device, *, reference: bool) -> None:
        """Makes `holder.network` trainable: float32 weights on `device`, computing in `dtype`."""
        self._holder = holder
        self._network = holder.network.float()
        self._copy = copy.deepcopy(self._network) if reference else None
        for network in (self._network, self._copy):
            if network is not None and dtype != torch.float32:
                network.forward = torch.autocast(device.type, dtype)(network.forward)
        self._network.requires_grad_(True)

    def named(self) -> list[tuple[str, nn.Parameter]]:
        return sorted(self._network.named_parameters())

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Raises RuntimeError where the policy was loaded without one."""
        if self._copy is None:
            raise RuntimeError("this policy was loaded without a reference: it would be a second copy of the network")
        self._holder.network = self._copy
        try:
            yield
        finally:
            self._holder.network = self._network


def add_lora(network: Any, lora: LoraSection, seed: int) -> LoraWeights:
    """Give the network a float32 adapter that changes nothing yet (B = 0); `seed` fixes its A.

    Raises ValueError when a name in `lora` fits no layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        device = next(network.parameters()).device
        inject_lora(network.to("cpu"), lora)
        network.to(device)
    weights = LoraWeights(network)
    for _, parameter in weights.named():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return weights


def frozen_channels_last(module: nn.Module) -> None:
    """Lays the frozen convolutions' weights out channels last, in place; what they take and give then is too.

    On a CPU the miniature's network is a fifth faster so (docs/benchmarks.md). Trained weights stay contiguous: views
    of DeepSpeed's flat buffers.
    """
    for parameter in module.parameters():
        if parameter.dim() == 4 and not parameter.requires_grad:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def inject_lora(network: Any, lora: LoraSection) -> None:
    """Put an untrained adapter on the layers that `lora` names, by peft: not every diffusers network has its own way.

    Raises ValueError when a name fits no layer.
    """
    layers = [name for name, _ in network.named_modules()]
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise ValueError(f"no layer of this network ends in model.lora.target_modules {target!r}")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale_numerator,
        lora_dropout=lora.dropout,
        init_lora_weights="gaussian",
        target_modules=list(lora.target_modules),
    )
    inject_adapter_in_model(config, network, ADAPTER_NAME)
