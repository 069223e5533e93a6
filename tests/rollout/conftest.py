"""What the tests of the rollout side share: a tiny pipeline, a tiny CLIP, one Ray cluster with token authentication."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.authentication_test_utils import reset_auth_token_state

from tests.tiny import tiny_pipeline
from tests.tiny_clip import write_clip


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of random weights in Stable Diffusion's layout."""
    return tiny_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights: the start of a step-aware model."""
    return write_clip(tmp_path_factory.mktemp("clip"), "small")


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
    settings = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",  # Ray's 15 lets a worker starve beside whatever else runs here
    }  # fmt: skip
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
