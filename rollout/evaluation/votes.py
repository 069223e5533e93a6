"""Votes files: read strictly, unblinded, counted by majority, and how far the voters agree.

A votes file, as vote.html saves it:

    {"format": "atelier-votes", "version": 1, "study": "<16 hex digits>", "voter": "Anna",
     "saved_at": "2026-01-31T12:00:00.000Z", "votes": {"p0000": {"flaws": "left", "appeal": "tie"}, ..}}

Rules:
- One voter counts once. Of several files of one name (capitals and outer spaces aside) the one saved last counts, and
  the others are reported; two saved at the same time with different votes are refused.
- A pair goes to the side that more than half of its voters chose; to `tie` otherwise.
- Disagreement is shown, not averaged away: agreement of every two voters, of each with the others, and
  Krippendorff's alpha (2011, nominal), 1 for perfect agreement and 0 for what chance would give.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from rollout.evaluation.ballot import ANSWERS, KEY_FORMAT, QUESTIONS, VERSION, VOTES_FORMAT

OUTCOMES = ("win", "tie", "lose")
Labels = dict[str, dict[str, str]]
"""Pair -> voter -> win, tie or lose (of the LoRA against the base), for one question."""


@dataclass(frozen=True)
class Ballot:
    """One votes file."""

    file: Path
    study: str
    voter: str
    saved_at: datetime
    votes: dict[str, dict[str, str]]
    """Pair -> question -> left, tie or right."""


@dataclass(frozen=True)
class Tally:
    """One question about one LoRA against the base."""

    wins: int
    ties: int
    losses: int
    by_voter: dict[str, Counter[str]]
    """Voter -> how often win, tie, lose."""
    agreement: dict[str, float | None]
    """Voter -> share of equal answers with the other voters over shared pairs; None where nothing is shared."""
    pairwise: dict[tuple[str, str], float | None]
    """Two voters -> share of equal answers over the pairs that both answered."""
    alpha: float | None
    """Krippendorff's; None with fewer than two voters on every pair, or when only one answer ever occurs."""


@dataclass(frozen=True)
class Aggregate:
    """Everything that the votes say."""

    voters: tuple[str, ...]
    ignored: tuple[str, ...]
    """Sentences about files that do not count."""
    tallies: dict[str, dict[str, Tally]] = field(default_factory=dict)
    """LoRA -> question -> tally."""


def read_key(file: Path) -> dict[str, Any]:
    """votes_key.json. Raises ValueError naming file and key."""
    key = _object(file, _load(file), "")
    _expect(file, key, "format", KEY_FORMAT)
    _expect(file, key, "version", VERSION)
    if not isinstance(key.get("study"), str):
        raise ValueError(f"{file}: study = {key.get('study')!r}: a text is wanted")
    for pair, entry in _object(file, key.get("pairs"), "pairs").items():
        entry = _object(file, entry, f"pairs.{pair}")
        if entry.get("side") not in ("left", "right") or not isinstance(entry.get("candidate"), str):
            raise ValueError(f"{file}: pairs.{pair} = {entry!r}: `candidate` and `side` (left or right) are wanted")
    return key


def read_ballot(file: Path, key: Mapping[str, Any]) -> Ballot:
    """A votes file of the study that `key` unblinds. Raises ValueError naming file, key and value."""
    found = _object(file, _load(file), "")
    _expect(file, found, "format", VOTES_FORMAT)
    _expect(file, found, "version", VERSION)
    if unknown := sorted(found.keys() - {"format", "version", "study", "voter", "saved_at", "votes"}):
        raise ValueError(f"{file}: unknown key {unknown[0]!r}; save the file again from vote.html")
    if found.get("study") != key["study"]:
        raise ValueError(f"{file}: study = {found.get('study')!r}, but the key unblinds {key['study']!r}")
    voter = found.get("voter")
    if not isinstance(voter, str) or not voter.strip():
        raise ValueError(f"{file}: voter = {voter!r}: a name is wanted")
    votes = _object(file, found.get("votes"), "votes")
    for pair, answers in votes.items():
        if pair not in key["pairs"]:
            raise ValueError(f"{file}: votes.{pair}: there is no such pair in this study")
        for question, answer in _object(file, answers, f"votes.{pair}").items():
            if question not in QUESTIONS:
                raise ValueError(f"{file}: votes.{pair}.{question}: unknown question; known: {', '.join(QUESTIONS)}")
            if answer not in ANSWERS:
                raise ValueError(f"{file}: votes.{pair}.{question} = {answer!r}: not one of {', '.join(ANSWERS)}")
    return Ballot(file, key["study"], voter.strip(), _time(file, found.get("saved_at")), votes)


def aggregate(ballots: Sequence[Ballot], key: Mapping[str, Any]) -> Aggregate:
    """Unblind and count. Raises ValueError when there is no vote, or when one voter's files contradict each other."""
    kept, ignored = _one_each(ballots)
    if not any(ballot.votes for ballot in kept):
        raise ValueError(f"no votes in {len(ballots)} file(s)")
    result = Aggregate(tuple(sorted(b.voter for b in kept)), tuple(ignored))
    for candidate in sorted({entry["candidate"] for entry in key["pairs"].values()}):
        result.tallies[candidate] = {q: tally(_labels(kept, key, candidate, q)) for q in QUESTIONS}
    return result


def tally(labels: Labels) -> Tally:
    """Majorities and agreement of one question's labels."""
    majorities = Counter(majority(list(by_voter.values())) for by_voter in labels.values())
    by_voter: dict[str, Counter[str]] = defaultdict(Counter)
    for answers in labels.values():
        for voter, label in answers.items():
            by_voter[voter][label] += 1
    voters = sorted(by_voter)
    pairwise = {pair: _equal(labels, [pair]) for pair in combinations(voters, 2)}
    with_others = {v: _equal(labels, [(v, other) for other in voters if other != v]) for v in voters}
    wins, ties, losses = (majorities[outcome] for outcome in OUTCOMES)
    return Tally(wins, ties, losses, dict(by_voter), with_others, pairwise, krippendorff_alpha(labels))


def majority(labels: Sequence[str]) -> str:
    """The label of more than half of the voters; `tie` when there is none."""
    label, count = Counter(labels).most_common(1)[0]
    return label if 2 * count > len(labels) else "tie"


def krippendorff_alpha(labels: Mapping[str, Mapping[str, Any]]) -> float | None:
    """1 - D_o / D_e for nominal data with gaps (Krippendorff 2011, section C); units with one value are left out."""
    units = [list(values.values()) for values in labels.values() if len(values) > 1]
    totals = Counter(value for unit in units for value in unit)
    n = sum(totals.values())
    expected = n * n - sum(count**2 for count in totals.values())
    if expected == 0:
        return None
    observed = 0.0
    for unit in units:
        different = len(unit) ** 2 - sum(count**2 for count in Counter(unit).values())
        observed += different / (len(unit) - 1)
    return 1 - (n - 1) * observed / expected


def _labels(ballots: Sequence[Ballot], key: Mapping[str, Any], candidate: str, question: str) -> Labels:
    labels: Labels = {}
    for ballot in ballots:
        for pair, answers in ballot.votes.items():
            entry = key["pairs"][pair]
            if entry["candidate"] == candidate and question in answers:
                answer = answers[question]
                label = "tie" if answer == "tie" else "win" if answer == entry["side"] else "lose"
                labels.setdefault(pair, {})[ballot.voter] = label
    return labels


def _one_each(ballots: Sequence[Ballot]) -> tuple[list[Ballot], list[str]]:
    by_voter: dict[str, list[Ballot]] = defaultdict(list)
    for ballot in ballots:
        by_voter[ballot.voter.casefold()].append(ballot)
    kept, ignored = [], []
    for files in by_voter.values():
        last = max(files, key=lambda ballot: ballot.saved_at)
        for other in files:
            if other is last:
                continue
            if other.saved_at == last.saved_at and other.votes != last.votes:
                raise ValueError(
                    f"{other.file}: voter = {other.voter!r} also in {last.file}, saved at the same time with other "
                    f"votes; remove one, or give one voter another name"
                )
            ignored.append(f"{other.file}: {other.voter} saved again later ({last.file}); the later file counts")
        kept.append(last)
    return kept, ignored


def _equal(labels: Labels, pairs: Sequence[tuple[str, str]]) -> float | None:
    shared = [
        (answers[a], answers[b]) for answers in labels.values() for a, b in pairs if a in answers and b in answers
    ]
    return sum(a == b for a, b in shared) / len(shared) if shared else None


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error


def _object(file: Path, value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{file}: {key or 'the file'} holds {type(value).__name__}; an object is wanted")
    return value


def _expect(file: Path, found: Mapping[str, Any], key: str, wanted: Any) -> None:
    if found.get(key) != wanted:
        raise ValueError(f"{file}: {key} = {found.get(key)!r}; expected {wanted!r}")


def _time(file: Path, text: Any) -> datetime:
    try:
        time = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError as error:
        raise ValueError(f"{file}: saved_at = {text!r}: a time such as 2026-01-31T12:00:00Z is wanted") from error
    if time.tzinfo is None:
        raise ValueError(f"{file}: saved_at = {text!r} has no time zone")
    return time
