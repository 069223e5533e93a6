"""Dotted overrides from the command line: `learner.optimizer.lr=1e-5 rollout.workers.max=16 schedule.type=sync`.

Values are YAML. A section can be replaced as a whole: `schedule={type: async, max_staleness_steps: 8}`.
The last of two overrides of one key wins; a new `type` drops what the former variant had.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from configs import yaml_io
from configs.errors import ConfigError
from configs.tree import Sections, find, in_free_mapping, nearest, takes_null, takes_text_only


@dataclass(frozen=True)
class Override:
    """One parsed override."""

    text: str
    path: str
    value: Any

    @property
    def source(self) -> str:
        return f"override '{self.text}'"


def parse_override(text: str, root: Sections) -> Override:
    """Split `key=value`, check the key against the schema, read the value as YAML. Raises ConfigError."""
    path, equals, raw = text.partition("=")
    path = path.strip()
    source = f"override '{text}'"
    if not equals or not path:
        raise ConfigError(source, ["is not of the form key=value, for instance learner.optimizer.lr=1e-5"])
    try:
        value = yaml_io.parse(raw)
    except yaml.YAMLError as error:
        raise ConfigError(source, [f"the value is no valid YAML ({yaml_io.problem(error)}); quote it"]) from None
    entry = find(root, path)
    if entry is None and not in_free_mapping(root, path):
        close = nearest(root, path, section=isinstance(value, dict))
        raise ConfigError(source, [f"unknown key {path}; did you mean {close}?"])
    if entry is not None and takes_text_only(entry.info.annotation) and not isinstance(value, str | list | dict):
        keeps_null = value is None and takes_null(entry.info.annotation)
        value = None if keeps_null else raw.strip()
    return Override(text, path, value)


def apply_overrides(data: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """A copy of `data` with the overrides in it; `type` keys first, since they decide which other keys exist."""
    result = copy.deepcopy(data)
    for override in sorted(overrides, key=lambda override: not override.path.endswith(".type")):
        *parents, key = override.path.split(".")
        node = result
        for name in parents[:-1]:
            node = _child(node, name)
        if parents:
            same = key != "type" or _child(node, parents[-1]).get("type", override.value) == override.value
            if not same:
                node[parents[-1]] = {}
            node = _child(node, parents[-1])
        node[key] = override.value
    return result


def _child(node: dict[str, Any], name: str) -> dict[str, Any]:
    """The mapping under `name`; whatever else stands there gives way."""
    if not isinstance(node.get(name), dict):
        node[name] = {}
    child: dict[str, Any] = node[name]
    return child
