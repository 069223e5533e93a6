"""One error for everything that can be wrong with a configuration, and its words.

Every message names the dotted key, its value, the reason and the fix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from configs.tree import Sections, alternatives, choices, fields_of, find, sections_of, takes_null


class ConfigError(ValueError):
    """A configuration that cannot be used. `problems` holds one sentence for each thing that is wrong."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = [f"{source}: {problem}" for problem in problems]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, tuple[str, ...]]]:
        return type(self), (self.source, self.problems)


def describe(error: ValidationError, root: Sections) -> list[str]:
    """One sentence for each field that pydantic refused; cross-field problems come as `configs.checks` wrote them."""
    found: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        if not detail["loc"] and isinstance(cause, ValueError):
            return str(cause).split("\n")
        path = _dotted(detail["loc"], root)
        if detail["type"].startswith("union_tag"):
            path += ".type"
        found.setdefault(path, _sentence(path, detail, root))
    return [text for path, text in found.items() if not any(other.startswith(path + ".") for other in found)]


def bounds(info: FieldInfo) -> list[str]:
    """The field's limits in words, for instance `above 0`."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return [
        f"{word} {getattr(limit, name):g}"
        for limit in info.metadata
        for name, word in words.items()
        if getattr(limit, name, None) is not None
    ]


def _dotted(loc: Sequence[int | str], root: Sections) -> str:
    """pydantic's location without the names of union members that it puts between the keys."""
    sections: Sections = root
    path = ""
    for part in loc:
        fields = fields_of(sections)
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in fields:
            path += f".{part}"
            sections = sections_of(fields[part].annotation)
        elif not sections:
            path += f".{part}"
    return path.removeprefix(".")


def _sentence(path: str, detail: Any, root: Sections) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    info = _info(path, root)
    if kind == "missing":
        return f"{path} is missing: {_wanted(info)}."
    if kind.startswith("union_tag"):
        value = context.get("tag", value)
    reason, fix = _reason(kind, value, context, info)
    return f"{path} = {_shown(value)}: {reason}. {fix}"


def _info(path: str, root: Sections) -> FieldInfo | None:
    """The field of a path, also of a section within a list; None for a key that the user chose."""
    head, listed, rest = path.partition("[")
    entry = find(root, head)
    if entry is None or not listed or not (inner := rest.partition("]")[2].removeprefix(".")):
        return entry.info if entry is not None else None
    lists = [part for part in alternatives(entry.info.annotation) if get_origin(part) is list]
    return _info(inner, sections_of(get_args(lists[0])[0])) if lists else entry.info


def _reason(kind: str, value: Any, context: dict[str, Any], info: FieldInfo | None) -> tuple[str, str]:
    if kind in ("literal_error", "union_tag_invalid", "union_tag_not_found"):
        return "not one of the choices", _choice_fix(value, context, info)
    if kind in _RANGE:
        return f"it must be {_RANGE[kind](context)}", f"Set it to {_wanted(info)}."
    if kind == "string_pattern_mismatch":
        return "a letter or digit, then letters, digits, '.', '_' or '-'", "It names a directory and actors."
    if kind == "finite_number":
        return "a finite number is wanted", f"Set it to {_wanted(info)}."
    reason = _WANTED_KINDS.get(kind, str(context.get("error", kind)))
    if isinstance(value, str) and kind in ("float_type", "int_type") and _is_number(value):
        return reason, "Write it without quotes."
    if kind == "string_type" and value is not None and not isinstance(value, dict | list):
        return reason, f'Put it in quotes: "{value}".'
    if value is None and info is not None and not takes_null(info.annotation):
        return reason, f"It cannot be null: leave the key out for its default, or set it to {_wanted(info)}."
    return reason, f"Set it to {_wanted(info)}."


_RANGE: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda c: f"above {c['gt']:g}",
    "greater_than_equal": lambda c: f"at least {c['ge']:g}",
    "less_than": lambda c: f"below {c['lt']:g}",
    "less_than_equal": lambda c: f"at most {c['le']:g}",
    "too_short": lambda c: f"at least {c['min_length']} long",
    "too_long": lambda c: f"at most {c['max_length']} long",
}

_WANTED_KINDS = {
    "float_type": "a number is wanted",
    "int_type": "a whole number is wanted",
    "int_from_float": "a whole number is wanted",
    "string_type": "a text is wanted",
    "path_type": "a path is wanted",
    "is_instance_of": "a path is wanted",
    "bool_type": "true or false is wanted",
    "dict_type": "a mapping of names to values is wanted",
    "model_type": "a section, a mapping of keys, is wanted",
    "model_attributes_type": "a section, a mapping of keys, is wanted",
    "list_type": "a list is wanted",
    "tuple_type": "a list is wanted",
}


def _choice_fix(value: Any, context: dict[str, Any], info: FieldInfo | None) -> str:
    valid = [str(choice) for choice in choices(info.annotation)] if info is not None else []
    if "expected_tags" in context:
        valid = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
    if not valid:  # inside a list of sections, where the schema is not looked up
        valid = [choice.strip("'") for choice in re.split(r", | or ", context.get("expected", ""))]
    close = get_close_matches(str(value), valid, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Choose from {', '.join(valid)}."


def _wanted(info: FieldInfo | None) -> str:
    """What would be accepted, in words, with the default as the example."""
    if info is None:  # a key of a mapping whose keys the user chooses: custom resources
        return "a number above 0"
    kind = " or ".join(dict.fromkeys(_kind(part) for part in alternatives(info.annotation) if part is not type(None)))
    text = " ".join([kind, " and ".join(bounds(info))]).strip()
    example = info.default
    plain = isinstance(example, int | float | str | tuple | list) and example not in ("", [])
    return f"{text}, for instance {_shown(list(example) if isinstance(example, tuple) else example)}" if plain else text


def _kind(part: Any) -> str:
    plain = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", Path: "a path"}
    containers = {list: "a list", tuple: "a list", dict: "a mapping of names to numbers"}
    return plain.get(part) or containers.get(get_origin(part), "a mapping of keys")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    """The value as one would write it in YAML, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
