"""How the processes of pytest-xdist share the tests (`make test` has two).

The files whose tests start Ray or whole commands come first and take turns, in one group; of the others each is a
group, and whichever process is free takes the next. So two clusters never compete for the cores, a shared fixture is
built once, and neither process is left without work.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

STARTERS = re.compile(r"\bimport (ray|subprocess)\b|\bCommand\(|\bray_cluster\b")


@cache
def starts_processes(file: Path) -> bool:
    return bool(STARTERS.search(file.read_text(encoding="utf-8")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not starts_processes(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "processes" if starts_processes(config.rootpath / file) else file

    return ByFile(config, log)
