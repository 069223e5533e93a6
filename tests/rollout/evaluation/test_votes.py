"""Blind voting: deterministic blinding, strict files, majorities by hand, agreement against published figures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rollout.evaluation.ballot import QUESTIONS, VOTES_FORMAT, Pair, blinded_pairs, voting_key
from rollout.evaluation.votes import krippendorff_alpha, majority, tally
from rollout.votes import main

FOUND: dict[str, Any] = {
    "settings": {"base": "b", "seed": 1},
    "prompts": ["one", "two", "three"],
    "candidates": {"base": {"sha256": "base"}, "x": {"sha256": "1"}},
}
EXPECTED = [(2, "left"), (1, "right"), (3, "right"), (0, "left")]
PAIRS = [Pair("p0000", 2, "x", "left"), Pair("p0001", 0, "x", "right"), Pair("p0002", 1, "x", "right")]


def test_blinding_is_deterministic_and_balanced() -> None:
    pairs = blinded_pairs(["base", "x", "y"], 100, seed=3)
    assert pairs == blinded_pairs(["base", "x", "y"], 100, seed=3)
    assert sorted((p.number, p.candidate) for p in pairs) == sorted((n, c) for n in range(100) for c in "xy")
    assert [p.id for p in pairs] == [f"p{n:04d}" for n in range(200)]
    sides = Counter(p.candidate_side for p in pairs)
    assert 70 <= sides["left"] <= 130 and [p.number for p in pairs] != sorted(p.number for p in pairs)
    other = blinded_pairs(["base", "x", "y"], 100, seed=4)
    assert [p.candidate_side for p in other] != [p.candidate_side for p in pairs]


def test_the_first_pairs_of_a_seed_are_these() -> None:
    """A study begun on one machine must unblind on another."""
    pairs = blinded_pairs(["base", "x"], 4, seed=0)
    assert [(p.number, p.candidate_side) for p in pairs] == EXPECTED


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "votes").mkdir()
    (tmp_path / "votes_key.json").write_text(json.dumps(voting_key(FOUND, PAIRS)))
    return tmp_path


def ballot(folder: Path, file: str, voter: str, votes: Any, **changes: Any) -> Path:
    content = {
        "format": VOTES_FORMAT,
        "version": 1,
        "study": voting_key(FOUND, PAIRS)["study"],
        "voter": voter,
        "saved_at": "2026-01-31T12:00:00.000Z",
        "votes": votes,
        **changes,
    }
    path = folder / "votes" / file
    path.write_text(json.dumps(content))
    return path


def counted(study: Path, *extra: str) -> dict[str, Any]:
    files = sorted(str(path) for path in (study / "votes").glob("*.json"))
    assert main(["aggregate", *files, "--json", str(study / "out.json"), *extra]) == 0
    return json.loads((study / "out.json").read_text())


def test_votes_are_unblinded_and_counted_by_majority(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """x is left in p0000, right in p0001 and p0002."""
    ballot(study, "a.json", "Anna", {"p0000": {"flaws": "left"}, "p0001": {"flaws": "left"}, "p0002": {"flaws": "tie"}})
    ballot(study, "b.json", "Ben", {"p0000": {"flaws": "left"}, "p0001": {"flaws": "left"}, "p0002": {"flaws": "left"}})
    ballot(study, "c.json", "Cem", {"p0000": {"flaws": "tie"}, "p0001": {"flaws": "right", "appeal": "right"}})
    found = counted(study)["results"]["x"]
    flaws = found["flaws"]  # p0000: win win tie -> win; p0001: lose lose win -> lose; p0002: tie lose -> no majority
    assert (flaws["win"], flaws["tie"], flaws["lose"]) == (1, 1, 1)
    assert flaws["voters"]["Anna"] == {"win": 1, "tie": 1, "lose": 1, "agreement_with_others": 2 / 5}
    assert flaws["voters"]["Cem"]["agreement_with_others"] == 0.0
    assert {tuple(p["voters"]): p["equal"] for p in flaws["pairwise_agreement"]}["Anna", "Ben"] == pytest.approx(2 / 3)
    assert (found["appeal"]["win"], found["appeal"]["krippendorff_alpha"]) == (1, None)
    assert found["alignment"]["voters"] == {}
    out = capsys.readouterr().out
    assert "x against base, 3 voter(s)" in out and "33.3%   33.3%   33.3%       3" in out and "40.0% Anna" in out


def test_a_voter_counts_once_and_the_last_file_counts(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ballot(study, "a1.json", "Anna", {"p0000": {"flaws": "left"}}, saved_at="2026-01-31T13:00:00+01:00")
    late = {"saved_at": "2026-01-31T12:00:01Z"}
    ballot(study, "a2.json", " anna ", {"p0000": {"flaws": "right"}}, **late)
    found = counted(study)
    assert (found["results"]["x"]["flaws"]["win"], found["results"]["x"]["flaws"]["lose"]) == (0, 1)
    assert found["voters"] == ["anna"] and "a1.json: Anna saved again later" in found["ignored"][0]
    assert "note: " in capsys.readouterr().out
    ballot(study, "a3.json", "Anna", {"p0000": {"flaws": "tie"}}, **late)
    files = [str(path) for path in sorted((study / "votes").glob("*.json"))]
    assert main(["aggregate", *files]) == 1
    assert "saved at the same time with other votes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"votes": {"p0000": {"flaws": "links"}}}, "bad.json: votes.p0000.flaws = 'links': not one of left, tie"),
        ({"votes": {"p0000": {"beauty": "left"}}}, "bad.json: votes.p0000.beauty: unknown question"),
        ({"votes": {"p0009": {"flaws": "left"}}}, "bad.json: votes.p0009: there is no such pair"),
        ({"votes": {"p0000": "left"}}, "bad.json: votes.p0000 holds str"),
        ({"votes": []}, "bad.json: votes holds list"),
        ({"votes": {"p0000": {"flaws": ["left"]}}}, "votes.p0000.flaws = ['left']"),
        ({"voter": "  "}, "bad.json: voter = '  '"),
        ({"study": "f" * 16}, "bad.json: study = 'ffffffffffffffff', but the key unblinds"),
        ({"format": "other"}, "bad.json: format = 'other'; expected 'atelier-votes'"),
        ({"version": 2}, "bad.json: version = 2; expected 1"),
        ({"saved_at": "yesterday"}, "bad.json: saved_at = 'yesterday'"),
        ({"saved_at": "2026-01-31T12:00:00"}, "has no time zone"),
        ({"key": 1}, "bad.json: unknown key 'key'"),
        ({"votes": {}}, "no votes in 1 file"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_key(
    study: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    votes = changes.pop("votes", {"p0000": {"flaws": "left"}})
    file = ballot(study, "bad.json", changes.pop("voter", "Anna"), votes, **changes)
    assert main(["aggregate", str(file)]) == 1
    assert message in capsys.readouterr().err


def test_files_that_are_not_json_and_a_missing_key_are_refused(
    study: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = study / "votes" / "broken.json"
    broken.write_text('{"format": ')
    assert main(["aggregate", str(broken)]) == 1
    assert "broken.json: not JSON" in capsys.readouterr().err
    lonely = tmp_path_factory.mktemp("lonely") / "votes" / "a.json"
    lonely.parent.mkdir()
    lonely.write_text("{}")
    assert main(["aggregate", str(lonely)]) == 1
    assert "no votes_key.json beside" in capsys.readouterr().err
    assert main(["aggregate", str(lonely), "--key", str(study / "votes_key.json")]) == 1
    assert "a.json: format = None" in capsys.readouterr().err
    bad_key = lonely.with_name("key.json")
    bad_key.write_text(json.dumps({**voting_key(FOUND, PAIRS), "pairs": {"p0000": {"candidate": "x", "side": "up"}}}))
    assert main(["aggregate", str(lonely), "--key", str(bad_key)]) == 1
    assert "key.json: pairs.p0000" in capsys.readouterr().err


def test_majority_needs_more_than_half() -> None:
    assert majority(["win", "win", "lose"]) == "win"
    assert majority(["win", "lose"]) == "tie" and majority(["win", "lose", "tie"]) == "tie"
    assert majority(["win", "win", "lose", "tie"]) == "tie" and majority(["lose"]) == "lose"


def test_alpha_of_krippendorffs_own_example() -> None:
    """Krippendorff (2011), section C: four observers, twelve units, gaps; nominal alpha 0.743."""
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    labels: dict[str, dict[str, str]] = {}
    for observer, row in enumerate(rows):
        for unit, value in enumerate(row.split()):
            if value != ".":
                labels.setdefault(f"u{unit}", {})[f"o{observer}"] = value
    assert krippendorff_alpha(labels) == pytest.approx(0.743, abs=5e-4)


def test_agreement_of_one_voter_is_unknown() -> None:
    found = tally({"p0000": {"Anna": "win"}, "p0001": {"Anna": "lose"}})
    assert found.alpha is None and found.agreement == {"Anna": None} and found.pairwise == {}


def test_the_questions_are_those_of_the_paper() -> None:
    assert list(QUESTIONS) == ["flaws", "appeal", "alignment"]
