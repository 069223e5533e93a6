"""`docs/configuration.md` from the schema: path, type, default, bounds and the line of documentation of every field.

python -m configs.docs          write docs/configuration.md
python -m configs.docs --check  exit with 1 where the file is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from configs.base import Section
from configs.errors import bounds
from configs.load import DEFAULT_PRESET, PRESET_DIR, preset_names
from configs.schema import AtelierConfig
from configs.spm import SpmConfig
from configs.tree import Entry, Sections, alternatives, entries, sections_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"

_INTRODUCTION = """\
# Configuration

Written by `python -m configs.docs` from the schema in `configs/`; a test keeps it current.

```
python -m learner.main                                         # the embedded default, configs/{default}.yaml
python -m learner.main --config sd15_spo                       # a preset of configs/, by name
python -m learner.main --config mine.yaml learner.optimizer.lr=1e-5 rollout.workers.max=16
python -m learner.main --config mine.yaml --dry-run            # resolved configuration, placement, nothing started
```

A file holds only what differs from the defaults below. Overrides are dotted keys with YAML values; a section can be
replaced as a whole (`schedule={{type: sync}}`); the last of two overrides of one key wins. Unknown and duplicate keys,
wrong types and ranges, and settings that contradict each other are refused before anything is loaded; the message names
the key, its value, the reason and the fix.

YAML is read as version 1.2: `1e-5` is a number, `no` and `off` are texts, a run named `2024` is written `"2024"`.
Sections with variants are told apart by `type`. The resolved copy of every run lies in its directory.

## Presets

| preset | what it is |
|---|---|
{presets}
"""

_SPM_INTRODUCTION = """\
# Preference models

The keys of `python -m learner.train_spm --config NAME_OR_FILE [key=value ...]` (docs/spm.md), read and checked alike.

| preset | what it is |
|---|---|
{presets}
"""


def render() -> str:
    """The whole document."""
    parts = [_INTRODUCTION.format(default=DEFAULT_PRESET, presets=_presets(AtelierConfig)), *_chapters(AtelierConfig)]
    parts += [_SPM_INTRODUCTION.format(presets=_presets(SpmConfig)), *_chapters(SpmConfig)]
    return "\n".join(parts)


def _presets(schema: type[Section]) -> str:
    return "\n".join(f"| `{name}` | {_preset_line(name)} |" for name in preset_names(schema))


def _preset_line(name: str) -> str:
    """The first comment line of a preset."""
    first = (PRESET_DIR / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip()


def _chapters(schema: type[Section]) -> list[str]:
    texts = []
    for name, info in schema.model_fields.items():
        texts += [_heading("##", name, info, schema)]
        texts += _tables(sections_of(info.annotation), name, getattr(schema(), name), schema)
    return texts


def _heading(marks: str, path: str, info: FieldInfo, schema: type[Section]) -> str:
    """The path and what stands there: a section in its own words, unless it is used elsewhere or has variants."""
    sections = sections_of(info.annotation)
    uses = sum(entry.sections == sections for entry in entries((schema,)))
    text = _summary(sections[0]) if uses == 1 and len(sections) == 1 else info.description
    return f"{marks} {path}\n\n{text}\n"


def _summary(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


def _tables(sections: Sections, path: str, default: Any, schema: type[Section]) -> list[str]:
    """A table for each section that may stand at `path`, each followed by those of the sections inside it."""
    texts = []
    for section in sections:
        texts += _table(section, path, default, variants=len(sections) > 1)
        for name, info in section.model_fields.items():
            if inner := sections_of(info.annotation):
                below = f"{path}.{name}"
                below_default = _default(section, name, default)
                texts += [_heading("###", below, info, schema), *_tables(inner, below, below_default, schema)]
    return texts


def _table(section: type[Section], path: str, default: Any, *, variants: bool) -> list[str]:
    """The plain keys of one section; nothing where it has none."""
    lines = []
    for name, info in section.model_fields.items():
        if Entry(name, info, sections_of(info.annotation), section).is_plain:
            shown = "required" if info.is_required() else _shown(_default(section, name, default))
            limits = " and ".join(bounds(info)) or (f"at least {_least(info)} long" if _least(info) else "")
            kind, text = _kind(info.annotation), info.description or "Which of the variants."
            lines.append(f"| `{path}.{name}` | {kind} | {shown} | {limits} | {text} |")
    if not lines:
        return []
    title = f"**`type: {section.model_fields['type'].default}`** {_summary(section)}\n\n" if variants else ""
    return [title + "\n".join(["| key | type | default | bounds | |", "|---|---|---|---|---|", *lines]) + "\n"]


def _default(section: type[Section], name: str, instance: Any) -> Any:
    """The field's value in `instance` where that is of this section, else the field's own default."""
    return getattr(instance, name) if isinstance(instance, section) else section.model_fields[name].default


def _least(info: FieldInfo) -> int | None:
    return next((limit.min_length for limit in info.metadata if hasattr(limit, "min_length")), None)


def _kind(annotation: Any) -> str:
    """The type as a user would say it."""
    return " or ".join(dict.fromkeys(_kind_of(part) for part in alternatives(annotation)))


def _kind_of(part: Any) -> str:
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", NoneType: "null"}
    if part in plain:
        return plain[part]
    origin, arguments = get_origin(part), get_args(part)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is dict:
        return f"mapping of names to {_kind(arguments[1])}s"
    if origin in (list, tuple):
        return f"list of {' and '.join(dict.fromkeys(_kind(item) for item in arguments))}"
    return "section"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return "empty" if value == "" else f"`{json.dumps(value, default=str).strip(chr(34))}`"


def main(arguments: list[str] | None = None) -> int:
    """Write the document, or check it."""
    parser = argparse.ArgumentParser(prog="python -m configs.docs", description="Render docs/configuration.md.")
    parser.add_argument("--check", action="store_true", help="only say whether the file is current")
    check = parser.parse_args(arguments).check
    text = render()
    if check:
        current = DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == text
        print(f"{DOCUMENT} is {'current' if current else 'out of date: run python -m configs.docs'}")
        return 0 if current else 1
    DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
    DOCUMENT.write_text(text, encoding="utf-8")
    print(f"wrote {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
