"""GenEval's prompts and scores: the rules file, the pictures of each prompt, the six task scores.

Pictures are read from either layout:

    DIR/00007/metadata.jsonl  DIR/00007/samples/*.png    GenEval's own: one folder a prompt
    DIR/NNNN.png                                          rollout.evaluate's OUT/images/<model>: prompt n mod N
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from rollout.evaluation.statistics import bootstrap_mean
from rollout.geneval.names import OBJECTS
from rollout.geneval.rules import COLOURS, RELATIONS, TASKS, Verdict
from rollout.intervals import Interval

Rule = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """One picture and what was found."""

    file: Path
    rule: Rule
    verdict: Verdict


def read_rules(file: Path) -> list[Rule]:
    """One rule a line: {"tag", "prompt", "include": [{"class", "count", "color"?, "position"?}], "exclude"?}.

    Raises ValueError naming file, line, key and value.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    rules = [_rule(line, f"{file}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not rules:
        raise ValueError(f"{file}: no prompts in this file")
    return rules


def pictures(folder: Path, rules: Sequence[Rule] | None) -> Iterator[tuple[Path, Rule]]:
    """Every picture with its rule, in order. `rules` may be None for GenEval's own layout, which has them inside.

    Raises ValueError when there is no picture, rules are needed, or a picture was made for another prompt.
    """
    prompts = sorted(path for path in folder.glob("*") if path.is_dir() and path.name.isdigit())
    flat = sorted(path for path in folder.glob("*.png") if path.stem.isdigit())
    if prompts:
        for path in prompts:
            (rule,) = read_rules(path / "metadata.jsonl")
            yield from ((file, rule) for file in sorted((path / "samples").glob("*.png")) if file.stem.isdigit())
    elif not flat:
        raise ValueError(f"{folder}: neither NNNN.png nor NNNNN/samples/*.png in it")
    elif rules is None:
        raise ValueError(f"{folder}: give the prompts' rules (--metadata geneval_metadata.jsonl)")
    for file in flat if not prompts else []:
        assert rules is not None
        rule = rules[int(file.stem) % len(rules)]
        with Image.open(file) as image:
            made_for = image.info.get("prompt", rule["prompt"])
        if made_for != rule["prompt"]:
            raise ValueError(
                f"{file} was made for {str(made_for)!r}, but the rule is for {rule['prompt']!r}; sample with "
                f"--prompts and the same --metadata file, all {len(rules)} prompts"
            )
        yield file, rule


@dataclass(frozen=True)
class TaskScores:
    """Shares of right pictures."""

    tasks: dict[str, Interval]
    """Task -> share with its 95 % interval over prompts; only tasks that had pictures."""
    overall: float | None
    """Mean of the six task scores; None unless all six are there."""


def scores(judged: Sequence[Judged]) -> TaskScores:
    """Score by task. Raises ValueError without pictures."""
    if not judged:
        raise ValueError("no pictures were judged")
    tasks = {}
    for task in TASKS:
        mine = [one for one in judged if one.rule["tag"] == task]
        if mine:
            values = [float(one.verdict.correct) for one in mine]
            tasks[task] = bootstrap_mean(values, [one.rule["prompt"] for one in mine])
            share = math.fsum(values) / len(values)  # over pictures, as published, also if prompts have unequal numbers
            tasks[task] = Interval(share, tasks[task].low, tasks[task].high, tasks[task].n)
    complete = len(tasks) == len(TASKS)
    return TaskScores(tasks, math.fsum(t.mean for t in tasks.values()) / len(TASKS) if complete else None)


def _rule(line: str, where: str) -> Rule:
    try:
        rule = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(rule, dict) or rule.get("tag") not in TASKS or not isinstance(rule.get("prompt"), str):
        raise ValueError(f"{where}: `prompt` and `tag` (one of {', '.join(TASKS)}) are wanted")
    if not isinstance(rule.get("include"), list) or not rule["include"]:
        raise ValueError(f"{where}: include = {rule.get('include')!r}: a list of clauses is wanted")
    for key in ("include", "exclude"):
        for number, clause in enumerate(rule.get(key, [])):
            _check_clause(clause, number, f"{where}: {key}[{number}]")
    return rule


def _check_clause(clause: Any, number: int, where: str) -> None:
    if not isinstance(clause, Mapping) or clause.get("class") not in OBJECTS:
        raise ValueError(f"{where} = {clause!r}: `class`, one of GenEval's 80 object names, is wanted")
    if not isinstance(clause.get("count"), int) or clause["count"] < 1:
        raise ValueError(f"{where}.count = {clause.get('count')!r}: a whole number from 1 is wanted")
    if "color" in clause and clause["color"] not in COLOURS:
        raise ValueError(f"{where}.color = {clause['color']!r}: not one of {', '.join(COLOURS)}")
    if "position" in clause:
        position = clause["position"]
        valid = isinstance(position, list) and len(position) == 2 and position[0] in RELATIONS
        if not valid or position[1] not in range(number):
            raise ValueError(
                f"{where}.position = {position!r}: [relation, number of an earlier clause] is wanted; relations: "
                f"{', '.join(RELATIONS)}"
            )
