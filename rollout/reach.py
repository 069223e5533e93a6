"""Where a Ray cluster is, and whether it is one: Ray itself would try for minutes before it says no."""

from __future__ import annotations

import ipaddress
import os
import socket

import grpc
import ray
from ray._private import ray_constants, services

_TIMEOUT_SEC = 5.0


def reach(address: str) -> str:
    """The cluster's HOST:PORT; `auto` is looked up on this machine. To be called before `ray.init(address=..)`.

    Raises OSError where nothing listens there, or something that is not Ray. Forms other than HOST:PORT are returned
    as they are, for Ray to judge.
    """
    if address == "auto":
        address = services.get_ray_address_from_environment("auto", None)
    if address.startswith(("http://", "https://")):
        raise ConnectionError("this is a dashboard, for `ray job`; the cluster's own address is HOST:PORT, port 6379")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return address
    if int(port) > 65535:
        raise ConnectionError(f"port {port} is above 65535")
    _connect(host.strip("[]"), int(port))
    _greet(f"{host}:{port}")
    if _is_loopback(host) and not _listens_beyond_loopback(int(port)):  # a run on this machine, of this user
        keep_to_loopback()
        use_token()
    return address


def keep_to_loopback() -> None:
    """From now on this process and those that it starts take part in a Ray cluster of this machine's loopback alone.

    Otherwise Ray replaces loopback addresses by the host's own, and listens on every interface. The switch has the
    systems in its name on which it is on by default.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray has read the variable when it was imported


def use_token() -> None:
    """Take part with the token that Ray keeps for this user, as a run on one machine does."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    ray._raylet.Config.initialize("")  # Ray has read the variable when it was imported


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=_TIMEOUT_SEC).close()


def _greet(address: str) -> None:
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    with grpc.insecure_channel(address, options=ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_TIMEOUT_SEC)
        except grpc.FutureTimeoutError as error:
            raise ConnectionError(
                "the port is in use by something that does not answer as Ray does; give the address that "
                "`ray start --head` printed (its port is 6379 unless --port said otherwise, not the dashboard's 8265)"
            ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def _listens_beyond_loopback(port: int) -> bool:
    try:
        _connect(services.get_node_ip_address(), port)
    except OSError:
        return False
    return True
