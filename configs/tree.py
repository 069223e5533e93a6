"""The schema as a tree of dotted paths: what keys exist, which are alike, what a field accepts.

Walks the pydantic sections, so that overrides, error messages and `docs/configuration.md` never repeat the schema.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from configs.base import Section

Sections = tuple[type[Section], ...]


@dataclass(frozen=True)
class Entry:
    """One key of the schema."""

    path: str
    """Dotted, for instance `learner.optimizer.lr`."""
    info: FieldInfo
    """Annotation, default, bounds and documentation."""
    sections: Sections
    """The sections that may stand here; empty for a plain value."""
    owner: type[Section]
    """The section that holds the key; differs between the variants of one path."""

    @property
    def is_plain(self) -> bool:
        """True where something other than a section may stand."""
        return set(alternatives(self.info.annotation)) != set(self.sections)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, with `Annotated` taken off; the annotation itself where it is none."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in alternatives(part))
    return (annotation,)


def sections_of(annotation: Any) -> Sections:
    """The sections among an annotation's alternatives."""
    plain = (part for part in alternatives(annotation) if get_origin(part) is None)
    return tuple(part for part in plain if isinstance(part, type) and issubclass(part, Section))


def is_free_mapping(annotation: Any) -> bool:
    """True for a mapping whose keys the user chooses."""
    return any(get_origin(part) is dict for part in alternatives(annotation))


def takes_text_only(annotation: Any) -> bool:
    """True where every scalar is a text (or a path): `run.name=2024` on the command line then means the text."""
    plain = [part for part in alternatives(annotation) if part is not type(None)]
    return all(part in (str, Path) for part in plain)


def takes_null(annotation: Any) -> bool:
    """True where null is a value."""
    return type(None) in alternatives(annotation)


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, or of a list of one."""
    for part in alternatives(annotation):
        if get_origin(part) is Literal:
            return get_args(part)
        if get_origin(part) is list:
            return choices(get_args(part)[0])
    return ()


def fields_of(sections: Sections) -> dict[str, FieldInfo]:
    """Field name to information, over all variants."""
    return {name: info for section in sections for name, info in section.model_fields.items()}


def entries(sections: Sections, prefix: str = "") -> Iterator[Entry]:
    """Every key below `sections`, parents first; a key that several variants share comes once for each."""
    for section in sections:
        for name, info in section.model_fields.items():
            inner = sections_of(info.annotation)
            yield Entry(prefix + name, info, inner, section)
            yield from entries(inner, f"{prefix}{name}.")


def find(sections: Sections, path: str) -> Entry | None:
    """The entry of a dotted path, or None."""
    return next((entry for entry in entries(sections) if entry.path == path), None)


def in_free_mapping(sections: Sections, path: str) -> bool:
    """True when the path names a key of a mapping whose keys the user chooses."""
    parent = find(sections, path.rpartition(".")[0])
    return parent is not None and not parent.sections and is_free_mapping(parent.info.annotation)


def nearest(sections: Sections, path: str, *, section: bool) -> str:
    """The valid path most like `path`: one that has all of its words in order, else by spelling.

    `section`: name a section instead of a plain key.
    """
    words = path.lower().split(".")

    def likeness(candidate: str) -> tuple[bool, float]:
        parts = candidate.split(".")
        whole = SequenceMatcher(None, ".".join(words), candidate, autojunk=False).ratio()
        last = SequenceMatcher(None, words[-1], parts[-1], autojunk=False).ratio()
        return _in_order(words, parts), whole + last + 0.5 * (words[0] == parts[0])

    known = [entry for entry in entries(sections) if (entry.sections if section else entry.is_plain)]
    return max(dict.fromkeys(entry.path for entry in known), key=likeness)


def _in_order(words: list[str], parts: list[str]) -> bool:
    remaining = iter(parts)
    return all(word in remaining for word in words)
