"""What is said of addresses where no Ray is. Clusters are reached in test_scale.py and learner/test_connection.py."""

from __future__ import annotations

import socket

import pytest

from rollout.reach import reach


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        yield server.getsockname()[1]


def test_a_port_that_something_else_has_is_named_within_seconds(listener):
    with pytest.raises(ConnectionError, match="in use by something that does not answer as Ray does"):
        reach(f"127.0.0.1:{listener}")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("http://127.0.0.1:8265", "this is a dashboard"),
        ("127.0.0.1:99999", "port 99999 is above 65535"),
    ],
)
def test_what_cannot_be_a_cluster_is_refused(address, words):
    with pytest.raises(OSError, match=words):
        reach(address)


@pytest.mark.parametrize("address", ["local", "cluster-1", "anyscale://cluster"])
def test_other_forms_are_left_to_ray(address):
    assert reach(address) == address
