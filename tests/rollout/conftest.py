"""One Ray cluster for every test of the rollout side that needs one, with token authentication."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
import ray
from ray._private.authentication_test_utils import reset_auth_token_state


def start_ray(attempts: int) -> None:
    """Ray gives its own start a fixed 30 seconds, which a busy machine may miss."""
    for attempt in range(attempts):
        try:
            ray.init(address="local", num_cpus=4, include_dashboard=False, namespace="atelier", log_to_driver=False)
            return
        except Exception as error:  # a plain Exception is what Ray raises then
            if "timed out during startup" not in str(error) or attempt + 1 == attempts:
                raise
            ray.shutdown()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A local cluster of 4 (logical) CPUs; gives its address. Subprocesses inherit its token."""
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    reset_auth_token_state()  # Ray has read the variables when it was imported
    try:
        start_ray(attempts=3)
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        reset_auth_token_state()
