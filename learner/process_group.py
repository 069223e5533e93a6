"""The ranks' process group under Ray Train, with a store that listens on the address of rank 0's node and nowhere else.

Ray Train leaves the store to torch, which opens it on every interface of the machine to whoever connects. In a local
run the node's address is loopback, and the ranks' own connections are kept there too.

    controller ── on_start ──► rank 0: listen ──address──► every rank: join (torch.distributed is ready in all)
"""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

import ray
import torch
from ray.train import get_context
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_listening: list[socket.socket] = []
"""In rank 0 between `listen` and `join`."""


class NodeTorchConfig(TorchConfig):
    """Ray Train's torch set-up, but for where the store listens."""

    @property
    def backend_cls(self) -> type[NodeBackend]:
        return NodeBackend


class NodeBackend(_TorchBackend):
    """Restarts and ends as Ray Train's; the start is `listen` and `join`."""

    def on_start(self, worker_group: Any, backend_config: NodeTorchConfig) -> None:
        address = worker_group.execute_single(0, listen)
        settings = (address, backend_config.backend, backend_config.timeout_s)
        ray.get([worker_group.execute_single_async(rank, join, *settings) for rank in range(len(worker_group))])


def listen() -> tuple[str, int]:
    """Open the store's socket on this node's address and a free port; returns both."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    _listening[:] = [socket.create_server((host, 0), family=family)]
    return host, _listening[0].getsockname()[1]


def join(address: tuple[str, int], backend: str, timeout_sec: int) -> None:
    """Meet the other ranks at `address`, inside a Ray Train worker. Raises torch's DistError when one does not come."""
    context = get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    os.environ.update(_described(address, context))
    if ipaddress.ip_address(address[0]).is_loopback:
        _keep_to_loopback()
    timeout = timedelta(seconds=timeout_sec)
    descriptor = _listening.pop().detach() if rank == 0 else None  # the store closes it
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        *address, world, is_master=rank == 0, timeout=timeout, master_listen_fd=descriptor
    )
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def _described(address: tuple[str, int], context: Any) -> dict[str, str]:
    """What DeepSpeed looks for in the environment; without it, it would look for MPI."""
    values = {
        "MASTER_ADDR": address[0],
        "MASTER_PORT": address[1],
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "NODE_RANK": context.get_node_rank(),
    }
    return {name: str(value) for name, value in values.items()}


def _keep_to_loopback() -> None:
    """gloo and NCCL would listen on the address of the host's name, or on the first interface."""
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
