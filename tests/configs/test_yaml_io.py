"""YAML 1.2 reading, duplicate keys, exact writing."""

from __future__ import annotations

import random

import pytest
import yaml

from configs import yaml_io

AWKWARD = "01289+-.eExo_:~nNulyYestrTfFaA<#' \"\n\t,[]{}é𝛼&*!|>%@`=\x85\u2028\u200b\ufeff\r\x07"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-1.5e+3", -1500.0),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-3", -3),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("off", "off"),
        ("y", "y"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("~", None),
        ("null", None),
        ("", None),
        ("none", "none"),
        ("=", "="),
        ("'1e-5'", "1e-5"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = yaml_io.parse(f"a: {text}")["a"]
    assert read == value
    assert type(read) is type(value)


def test_duplicate_key_is_refused_with_both_lines() -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        yaml_io.parse("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n")
    expected = "line 5, column 3: the key 'c' stands here and on line 3 already; keep one of them"
    assert yaml_io.problem(caught.value) == expected


def test_merged_keys_may_be_overridden() -> None:
    assert yaml_io.parse("x: &a {b: 1, c: 1}\ny: {<<: *a, b: 2}")["y"] == {"b": 2, "c": 1}


def test_aliases_share_nothing() -> None:
    data = yaml_io.parse("x: &a {b: [1]}\ny: *a")
    data["x"]["b"].append(2)
    assert data["y"] == {"b": [1]}


def test_a_value_inside_itself_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="contains itself"):
        yaml_io.parse("a: &x [*x]")


def test_python_tags_are_refused() -> None:
    with pytest.raises(yaml.YAMLError):
        yaml_io.parse("a: !!python/object/apply:os.getcwd []")


@pytest.mark.parametrize("read", [yaml_io.parse, yaml.safe_load], ids=["yaml 1.2", "yaml 1.1"])
def test_any_text_survives_writing_and_reading(read: object) -> None:
    assert callable(read)
    generator = random.Random(0)
    for _ in range(3000):
        text = "".join(generator.choice(AWKWARD) for _ in range(generator.randint(0, 6)))
        assert read(yaml_io.render({"a": text})) == {"a": text}


def test_any_number_survives_writing_and_reading() -> None:
    generator = random.Random(0)
    for _ in range(1000):
        for number in (10 ** generator.uniform(-300, 300), -generator.random(), generator.randint(-(10**18), 10**18)):
            read = yaml_io.parse(yaml_io.render({"a": number}))["a"]
            assert read == number
            assert type(read) is type(number)
