"""From a YAML file or preset and dotted overrides to one checked configuration, and back. Never imports torch.

file or preset ──► YAML 1.2 ──► overrides ──► unknown keys? ──► types, ranges ──► cross-field checks ──► AtelierConfig
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from configs import yaml_io
from configs.base import Section
from configs.errors import ConfigError, describe
from configs.overrides import apply_overrides, parse_override
from configs.schema import AtelierConfig
from configs.spm import SpmConfig
from configs.tree import Sections, fields_of, nearest, sections_of, takes_null

PRESET_DIR = Path(__file__).parent
DEFAULT_PRESET = "quickstart"
ROOT: Sections = (AtelierConfig,)
SPM_SUFFIX = "_spm"
"""Presets whose names end so are of `SpmConfig`, all others of `AtelierConfig`."""

Schema = TypeVar("Schema", AtelierConfig, SpmConfig)


def preset_names(schema: type[Section] = AtelierConfig) -> list[str]:
    """The presets in this package that are of `schema`, by name."""
    names = sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))
    return [name for name in names if name.endswith(SPM_SUFFIX) == (schema is SpmConfig)]


def load_config(path: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()) -> AtelierConfig:
    """Read, override and check a configuration.

    `path` is a file or the name of a preset; None is the embedded default. Raises ConfigError, which names the key,
    its value, the reason and the fix.
    """
    return load_as(AtelierConfig, path if path is not None else DEFAULT_PRESET, overrides)


def load_as(schema: type[Schema], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Schema:
    """`load_config` for any root of a configuration. Raises ConfigError."""
    file = _locate(os.fspath(path), schema)
    parsed = [parse_override(text, (schema,)) for text in overrides]
    given = _with_defaults(_read(file), (schema,), schema())  # a variant that is not named counts as named
    data = apply_overrides(given, parsed)
    source = str(file) if file.parent != PRESET_DIR else f"{PRESET_DIR.name}/{file.name}"
    if parsed:
        source += " with overrides"
    return build_as(schema, data, source=source)


def build_config(data: Mapping[str, Any], *, source: str = "configuration") -> AtelierConfig:
    """Check a mapping of plain values. Raises ConfigError with `source` in front."""
    return build_as(AtelierConfig, data, source=source)


def build_as(schema: type[Schema], data: Mapping[str, Any], *, source: str = "configuration") -> Schema:
    """`build_config` for any root of a configuration. Raises ConfigError."""
    root: Sections = (schema,)
    complete = _with_defaults(data, root, schema())
    unknown = list(_unknown(complete, root, "", root))
    if unknown:
        raise ConfigError(source, unknown)
    try:
        return schema.model_validate(complete)
    except ValidationError as error:
        raise ConfigError(source, describe(error, root)) from None


def dump_config(config: AtelierConfig | SpmConfig) -> str:
    """The whole configuration as YAML; `load_config` turns it back into an equal one."""
    return yaml_io.render(config.model_dump(mode="json"))


def write_resolved(config: AtelierConfig | SpmConfig, path: str | os.PathLike[str]) -> None:
    """Write the resolved configuration, whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".tmp")
    header = f"# The resolved configuration of run '{config.run.name}': every field, defaults included.\n"
    with partial.open("w", encoding="utf-8") as file:
        file.write(header + dump_config(config))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def _locate(name: str, schema: type[Section]) -> Path:
    file = Path(name)
    if file.is_file():
        return file
    preset = PRESET_DIR / f"{name}.yaml"
    if file.name == name and preset.is_file():
        return preset
    reason = "is a directory" if file.is_dir() else "no such file, nor a preset of that name"
    presets = preset_names(schema)
    close = get_close_matches(file.stem, presets, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise ConfigError(name, [f"{reason}{hint} Presets: {', '.join(presets)}."])


def _read(file: Path) -> dict[str, Any]:
    try:
        value = yaml_io.parse(file.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ConfigError(str(file), [f"not valid YAML, {yaml_io.problem(error)}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(file), [f"not UTF-8 text (byte {error.start}); save it as UTF-8"]) from None
    except OSError as error:
        raise ConfigError(str(file), [f"cannot be read: {error.strerror}"]) from None
    if value is None:
        raise ConfigError(str(file), ["the file is empty; write at least 'run: {name: my-run}', or name a preset"])
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise ConfigError(str(file), [f"holds {kind}, not a mapping; its top level must be keys such as 'run:'"])
    return value


def _with_defaults(data: Mapping[Any, Any], sections: Sections, default: Any) -> dict[str, Any]:
    """Empty sections become mappings, and a section with variants that names none gets its default's `type`."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        info = fields_of(sections).get(key)
        inner = sections_of(info.annotation) if info is not None else ()
        standard = getattr(default, str(key), None)
        if info is not None and inner and (value is None and not takes_null(info.annotation)):
            value = {}
        if isinstance(value, dict) and inner:
            value = _with_defaults(value, inner, standard)
            if len(inner) > 1 and "type" not in value and (standard_type := getattr(standard, "type", None)):
                value = {"type": standard_type, **value}
        result[key] = value
    return result


def _unknown(data: Mapping[Any, Any], sections: Sections, prefix: str, root: Sections) -> Iterator[str]:
    """A sentence for every key that the schema does not have, or that belongs to another variant."""
    chosen = [section for section in sections if _variant(section) in (None, data.get("type"))]
    fields = fields_of(tuple(chosen) or sections)
    for key, value in data.items():
        path = f"{prefix}{key}"
        if key in fields:
            if isinstance(value, dict) and (inner := sections_of(fields[key].annotation)):
                yield from _unknown(value, inner, f"{path}.", root)
            continue
        if owners := [str(_variant(section)) for section in sections if key in section.model_fields]:
            here = prefix.rstrip(".")
            yield (
                f"{path} = {value}: only {here}.type = {' or '.join(owners)} {'has' if len(owners) == 1 else 'have'} "
                f"this key, and {here}.type is {data.get('type')}. Leave the key out or change {here}.type."
            )
        else:
            yield f"unknown key {path}; did you mean {nearest(root, path, section=isinstance(value, dict))}?"


def _variant(section: type[Section]) -> str | None:
    """The section's `type`, where it has one."""
    info = section.model_fields.get("type")
    return None if info is None else str(info.default)
