"""Nothing that runs on a GPU mixes devices: rollout, evaluation, scorers and training, with values, on any machine.

test_no_data.py has what this leaves out, without values: every family and every objective, in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch

from tests.devices import emulated, pieces


@pytest.fixture
def alone() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Calls a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda function: pool.submit(function).result()


def compute() -> tuple[dict[str, list[float]], list[str]]:
    """Small operations on the emulated device, one kind each, and what mistakes say."""
    device = emulated.set_up()
    x, w = torch.arange(6.0).view(2, 3).to(device), torch.ones(3, device=device, requires_grad=True)
    assert x.device.type == "emulated"
    (x @ w).sum().backward()
    assert w.grad is not None and w.grad.device == device
    written = x.clone()
    written[1, [0, 2]] = 9.0
    values = {
        "matmul": x @ torch.ones(3, 1).to(device),
        "gradient": w.grad,
        "number of the CPU": x.sum() + torch.tensor(1.0),
        "index of the CPU": x[torch.tensor([1])],
        "written": written,
        "in place": x[0].clone().mul_(2).add_(1),
    }
    said = []
    for mistake in (
        lambda: x @ torch.ones(3, 2),
        lambda: x.numpy(),
        lambda: torch.randn(2, device=device, generator=torch.Generator()),
    ):
        try:
            mistake()
        except (RuntimeError, TypeError) as error:
            said.append(str(error))
    return {name: value.flatten().tolist() for name, value in values.items()}, said


def test_the_emulated_device_computes_and_refuses_as_a_gpu_does(alone: Callable[..., Any]) -> None:
    values, (two, numpy, generator) = alone(compute)
    assert values == {
        "matmul": [3, 12],
        "gradient": [3, 5, 7],
        "number of the CPU": [16],
        "index of the CPU": [3, 4, 5],
        "written": [0, 1, 2, 9, 4, 9],
        "in place": [1, 3, 5],
    }
    assert "tensors on two devices, on the CPU [(3, 2)]" in two
    assert "numpy() is not supported" in numpy and "a generator of the CPU" in generator


def test_what_is_meant_for_a_gpu_gives_the_cpus_values_elsewhere(alone: Callable[..., Any]) -> None:
    found = alone(pieces.run_all)
    assert found.keys() == pieces.PIECES.keys() and all(values["cpu"] for values in found.values())
    for name, values in found.items():
        # kernels for another layout round otherwise
        assert values["emulated"] == pytest.approx(values["cpu"], rel=2e-4, abs=2e-5), name
