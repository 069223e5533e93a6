"""What all ranks must know at once: that one of them cannot go on. The others would wait for it in a collective.

Every function here is collective: it is called on all ranks of the process group, or on none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def first_fault(fault: str | None) -> str | None:
    """What the first of the ranks that have a fault reports; None where no rank has one."""
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, fault)
    return next((str(text) for text in everyone if text is not None), None)


def on_every_rank(action: Callable[[], T], kind: type[ValueError]) -> T:
    """This rank's `action()`. Where it raises `kind` on some rank, every rank raises it, in the first one's words."""
    fault: str | None = None
    try:
        result = action()
    except kind as error:
        fault = str(error)
    if (found := first_fault(fault)) is not None:
        raise kind(found)
    return result
