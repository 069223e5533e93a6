"""The DeepSpeed engine over a policy's network: ZeRO 0 to 3, with an adapter or the whole network as trained weights.

DeepSpeed runs in its float32 mode although the frozen base may be bfloat16: that keeps every parameter's own dtype and
adds no autocast, so the learner's forward pass is the sampler's, bit for bit on the same batch (a network that is
trained whole brings its own autocast: rollout/trainable.py; a caller's is kept). Its counter of accumulation steps is
not used: the caller says which micro-batch is an update's last, and scales the loss itself.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from configs.learner import EngineSection, OptimizerSection
from rollout.policy import DiffusionPolicy
from rollout.trainable import frozen_channels_last

PERSISTENT_ELEMENTS = 10_000
"""ZeRO-3 keeps smaller tensors whole on every rank: gathering each bias for each use costs more than it saves."""
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's own most; it allocates a bucket whole, which for an adapter would be 2 GB of nothing."""


class EngineError(ValueError):
    """This node cannot do what the settings ask for; a restart would not change that."""


class EngineSettings(Protocol):
    """What the engine needs of a configuration, whatever is trained."""

    @property
    def optimizer(self) -> OptimizerSection: ...

    @property
    def engine(self) -> EngineSection: ...

    @property
    def micro_batch_pairs(self) -> int: ...


def build_engine(policy: DiffusionPolicy, settings: EngineSettings) -> Any:
    """DeepSpeed engine over `policy.network`, with the policy's trainable weights.

    The policy's parameters become the engine's: under ZeRO-3 they are empty outside a gather (`gather_trained`).
    Raises RuntimeError without a process group.
    """
    parameters = [parameter for _, parameter in policy.trainable_parameters()]
    network = policy.network.to(memory_format=torch.contiguous_format)  # DeepSpeed broadcasts weights as flat bytes
    engine = wrap_module(network, parameters, settings, policy.device)
    if settings.engine.zero_stage < 3:  # ZeRO-3 keeps frozen weights, too, in flat parts
        frozen_channels_last(network)
    return engine


def wrap_module(
    module: nn.Module, parameters: Sequence[nn.Parameter], settings: EngineSettings, device: torch.device
) -> Any:
    """DeepSpeed engine over any module, on the process group that exists already; `parameters` (float32) are trained.

    Raises RuntimeError without a process group, EngineError where offload finds no compiler.
    """
    if not torch.distributed.is_initialized():
        raise RuntimeError("the engine needs an initialised torch.distributed process group")
    _prepare_environment(device)
    import deepspeed  # reads the environment and chooses its accelerator when it is imported

    # Otherwise DeepSpeed tries out compilers and builds a shared-memory collective for the ranks of a CPU node at its
    # first start: half a minute, and a lock file that a killed run leaves behind. Gloo is enough for an adapter.
    deepspeed.ops.__compatible_ops__ = {}
    assert all(parameter.dtype == torch.float32 for parameter in parameters), "trained weights are float32"
    try:
        engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=list(parameters),
            config=deepspeed_config(settings, trained=sum(parameter.numel() for parameter in parameters)),
            dist_init_required=False,
        )
    except Exception as error:
        _explain_offload(settings.engine, error)
        raise
    _keep_autocast(engine, module, device)
    engine.train()  # only dropout in the adapter tells this from the sampler's mode
    return engine


def _explain_offload(engine: EngineSection, error: Exception) -> None:
    """DeepSpeed compiles its CPU Adam on first use. Raises EngineError where that is what failed."""
    missing = [name for name in (os.environ.get("CXX", "c++"), "ninja") if shutil.which(name) is None]
    if engine.offload == "cpu" and missing:
        raise EngineError(
            f"engine.offload = cpu: DeepSpeed compiles its CPU Adam on the rank's node, and {' and '.join(missing)} "
            f"cannot be found on {os.uname().nodename}; install a C++ compiler (or name it in $CXX) and ninja, "
            f"or set offload to none"
        ) from error


def _keep_autocast(engine: Any, module: nn.Module, device: torch.device) -> None:
    """An autocast around a call of the engine reaches the module: on a GPU DeepSpeed would switch it off on the way."""
    around: list[torch.autocast] = []

    def remember(*_: Any) -> None:
        enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        around[:] = [torch.autocast(device.type, dtype, enabled=enabled)]

    def forward(*inputs: Any, **named: Any) -> Any:
        with around[0] if around else nullcontext():
            return inner(*inputs, **named)

    inner = module.forward
    module.forward = wraps(inner)(forward)
    engine.register_forward_pre_hook(remember)
    engine.register_forward_hook(lambda *_: around.clear(), always_call=True)


def deepspeed_config(settings: EngineSettings, *, trained: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for these settings and so many trained numbers."""
    optimizer, engine = settings.optimizer, settings.engine
    offloaded = engine.offload == "cpu"
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_pairs,
        # Only says whether buffers for accumulation are kept (offload needs it); it divides nothing here.
        "gradient_accumulation_steps": 2 if offloaded else 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "steps_per_print": None,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.lr,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                "torch_adam": not offloaded,  # offloaded states are updated by DeepSpeed's CPU Adam
            },
        },
        "zero_optimization": _zero_config(engine, trained),
    }


def _zero_config(engine: EngineSection, trained: int) -> dict[str, Any]:
    config: dict[str, Any] = {"stage": engine.zero_stage, "reduce_bucket_size": min(BUCKET_ELEMENTS, trained)}
    if engine.zero_stage == 3:
        config["stage3_param_persistence_threshold"] = PERSISTENT_ELEMENTS
    if engine.offload == "cpu" and engine.zero_stage > 0:
        config["offload_optimizer"] = {"device": "cpu"}
        if engine.zero_stage == 3:
            config["offload_param"] = {"device": "cpu"}
    return config


def _prepare_environment(device: torch.device) -> None:
    """What DeepSpeed reads. Without the process group's variables, which tests do not set, it looks for MPI."""
    group = torch.distributed
    os.environ.setdefault("RANK", str(group.get_rank()))
    os.environ.setdefault("WORLD_SIZE", str(group.get_world_size()))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # DeepSpeed takes it for the device; ranks may share one
    os.environ["DS_ACCELERATOR"] = device.type


def accumulate(engine: Any, loss: Tensor, *, last: bool) -> None:
    """Backward pass of one micro-batch; `last` says that the update follows.

    Ranks' gradients are averaged, so a loss that is to be summed over ranks is multiplied by their number.
    """
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(loss, scale_wrt_gas=False)


def apply_update(engine: Any, lr: float) -> float:
    """Clip, step, clear. Returns the gradient's global norm before clipping.

    A non-finite norm is returned and changes nothing: neither weights nor optimiser state. All ranks agree on it.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    if not engine.zero_optimization():
        return _apply_replicated_update(engine)
    engine.step()
    return math.inf if engine.optimizer.overflow else float(engine.get_global_grad_norm())


def _apply_replicated_update(engine: Any) -> float:
    """Stage 0 has no overflow check of its own. Gradients are equal on all ranks here."""
    gradients = [p.grad for group in engine.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    if math.isfinite(norm):
        engine.step()
    else:
        engine.zero_grad()
        engine.micro_steps += 1
    return norm


def gather_trained(engine: Any, policy: DiffusionPolicy, *, here: bool = True) -> dict[str, Tensor] | None:
    """A float32 CPU copy of all trained weights on the ranks that want it `here`, None on the others.

    Collective under ZeRO-3: all ranks must call it.
    """
    import deepspeed

    partitioned = engine.zero_optimization_partition_weights()
    parameters = [parameter for _, parameter in policy.trainable_parameters()]
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None, enabled=partitioned):
        return policy.adapter_state() if here else None


def learning_rate(settings: OptimizerSection, step: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (0-based) of `total_steps`.

    Linear warm-up to the peak over `warmup_steps`, then constant, or linear or cosine down to
    `final_lr_ratio * lr`, which the last step has.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.decay == "constant":
        return settings.lr
    remaining = max(1, total_steps - 1 - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / remaining)
    shape = 1 - progress if settings.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return settings.lr * (settings.final_lr_ratio + (1 - settings.final_lr_ratio) * shape)
