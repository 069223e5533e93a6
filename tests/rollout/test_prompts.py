"""The prompt stream is endless, seeded and the same everywhere; broken files are named with their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rollout.prompts import PromptItem, PromptStream, load_prompts

PROMPTS = ("a red circle", "a blue square", "a green star", "two pink rings", "a tall tree")


def test_every_epoch_holds_every_prompt_once_in_another_order():
    stream = PromptStream(PROMPTS, seed=3)
    epochs = [[stream.item(epoch * 5 + position).prompt for position in range(5)] for epoch in range(4)]
    assert all(sorted(epoch) == sorted(PROMPTS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_items_do_not_depend_on_the_order_of_asking_nor_on_the_process():
    forwards = [PromptStream(PROMPTS, seed=3).item(ordinal) for ordinal in range(20)]
    other = PromptStream(PROMPTS, seed=3)
    assert [other.item(ordinal) for ordinal in reversed(range(20))] == forwards[::-1]
    # Literal values: a change here would change every seeded run.
    assert forwards[0] == PromptItem(0, "a tall tree", 848165183401427713)
    assert forwards[7] == PromptItem(7, "a blue square", 231531758857473978)


def test_seeds_differ_between_ordinals_and_runs_and_fit_a_torch_generator():
    seeds = {PromptStream(PROMPTS, seed).item(ordinal).seed for seed in range(3) for ordinal in range(50)}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptStream((), seed=0)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_txt_json_and_jsonl_give_the_same_prompts(tmp_path):
    entries = [{"caption": PROMPTS[0]}, {"prompt": PROMPTS[1], "id": 7}, *PROMPTS[2:]]
    expected = PROMPTS
    assert load_prompts(write(tmp_path / "a.txt", "\n".join(PROMPTS) + "\n\n")) == expected
    assert load_prompts(write(tmp_path / "a.json", json.dumps(entries))) == expected
    assert load_prompts(write(tmp_path / "a.jsonl", "\n".join(json.dumps(entry) for entry in entries))) == expected
    assert load_prompts(str(tmp_path / "a.jsonl"), limit=2) == expected[:2]


def test_non_latin_prompts_and_windows_files_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffein grüner Kreis\r\n赤い丸\r\n".encode())
    assert load_prompts(str(path)) == ("ein grüner Kreis", "赤い丸")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", r"a\.txt: no prompts"),
        ("a.txt", "fine\nbro\x00ken\n", r"a\.txt:2: control character"),
        ("a.json", '["fine",\n 7]', r"a\.json: entry 2: a prompt must be text, found int"),
        ("a.json", '["fine",\n oops]', r"a\.json:2: not JSON"),
        ("a.json", '{"caption": "x"}', r"expected a JSON list of prompts, found dict"),
        ("a.jsonl", '"fine"\n{"caption": "x"\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"text": "x"}', r"a\.jsonl:1: expected one of the keys caption, prompt, found \['text'\]"),
        ("a.jsonl", '{"caption": "  "}', r"a\.jsonl:1: empty prompt"),
        ("a.csv", "x", r"unknown kind '\.csv'; expected one of \.txt"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        load_prompts(write(tmp_path / name, text))


def test_bytes_that_are_not_text_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"a\.txt:2: not UTF-8"):
        load_prompts(str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match=r"none\.txt: prompts cannot be read: No such file"):
        load_prompts(str(tmp_path / "none.txt"))
