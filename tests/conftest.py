"""How two processes of pytest-xdist share the tests (`make test`): see `pytest_collection_modifyitems`."""

from __future__ import annotations

import pytest

STARTERS = {"ray", "subprocess", "Command", "run_ranks"}
"""Module-level names of what starts processes."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with processes of their own come first and take turns, in one group; of the others a file is a group.

    So two clusters never compete for the cores, a shared fixture is built once, and the rest runs meanwhile.
    """
    starting, others = [], []
    for item in items:
        assert isinstance(item, pytest.Function)
        starts = "ray_cluster" in item.fixturenames or bool(STARTERS & vars(item.module).keys())
        item.add_marker(pytest.mark.xdist_group("processes" if starts else item.path.stem))
        (starting if starts else others).append(item)
    items[:] = starting + others
