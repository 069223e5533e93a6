"""YAML as version 1.2 reads it, with duplicate keys refused.

PyYAML follows YAML 1.1, where `1e-5` is a text, `no` is false, `010` is eight and `12:30` is 750. Here numbers,
booleans and nulls are those of the 1.2 core schema. Writing quotes whatever either version would not read as text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_NULL = r"~|null|Null|NULL|"
_BOOL = r"true|True|TRUE|false|False|FALSE"
_INT = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_MERGE = "tag:yaml.org,2002:merge"
_RESOLVERS = (
    ("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", _BOOL, list("tTfF")),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
    (_MERGE, "<<", ["<"]),
)


class DuplicateKeyError(yaml.MarkedYAMLError):
    """The same key twice in one mapping."""


class Loader(yaml.SafeLoader):
    """SafeLoader with the 1.2 core schema and without silent overwriting."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if key.value in seen:
                first = seen[key.value]
                raise DuplicateKeyError(
                    problem=f"the key '{key.value}' stands here and on line {first} already; keep one of them",
                    problem_mark=key.start_mark,
                )
            seen[key.value] = key.start_mark.line + 1
        return node


def _construct_int(loader: Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _construct_float(loader: Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'  # PyYAML folds some line breaks wrongly in its other styles
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text which YAML 1.1 or YAML 1.2 would read as something else."""


for _tag, _pattern, _first in _RESOLVERS:
    _regex = re.compile(rf"^(?:{_pattern})$")
    Loader.add_implicit_resolver(_tag, _regex, _first)
    Dumper.add_implicit_resolver(_tag, _regex, _first)
Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
Dumper.add_representer(str, _represent_str)


def parse(text: str) -> Any:
    """The value of one YAML document, aliases copied out. Raises yaml.YAMLError; `problem` says where and what."""
    try:
        return _unshared(yaml.load(text, Loader=Loader))
    except RecursionError:
        raise yaml.YAMLError("a value contains itself through an alias, or is nested too deeply") from None


def _unshared(value: Any) -> Any:
    """A deep copy in which YAML aliases no longer share anything."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def render(value: Any) -> str:
    """Block-style YAML that `parse` turns back into exactly the same value."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def problem(error: yaml.YAMLError) -> str:
    """`line 3, column 7: what is wrong`, as far as the parser knows."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f"{error.context}: " if error.context else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"
    return str(error)
