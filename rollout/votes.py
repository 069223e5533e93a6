"""Blind votes, unblinded and counted: python -m rollout.votes aggregate evaluations/quickstart/votes/*.json

The key (votes_key.json) is looked for beside the votes and in the folder above; --key names another.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollout.evaluation.ballot import QUESTIONS
from rollout.evaluation.votes import OUTCOMES, Aggregate, Tally, aggregate, read_ballot, read_key

KEY_FILE = "votes_key.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 counted, 1 refused, 2 wrong usage."""
    options = _parse(arguments)
    try:
        key = read_key(options.key or find_key(options.files[0]))
        found = aggregate([read_ballot(file, key) for file in options.files], key)
        if options.json is not None:
            options.json.write_text(json.dumps(as_json(found), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines(found)))
    return 0


def find_key(votes: Path) -> Path:
    """votes_key.json beside a votes file or one folder up. Raises ValueError when there is none."""
    for folder in (votes.resolve().parent, votes.resolve().parent.parent):
        if (folder / KEY_FILE).is_file():
            return folder / KEY_FILE
    raise ValueError(f"no {KEY_FILE} beside {votes} or in the folder above; name it with --key")


def lines(found: Aggregate) -> list[str]:
    """The papers' win / tie / lose table of each LoRA, then every voter's own, and how far they agree."""
    text = [f"note: {sentence}" for sentence in found.ignored]
    for candidate, by_question in found.tallies.items():
        text += ["", f"{candidate} against base, {len(found.voters)} voter(s), majority a pair", ""]
        text.append(f"{'question':<12}{'win':>8}{'tie':>8}{'lose':>8}{'pairs':>8}   agreement (alpha)")
        for question, tally in by_question.items():
            text.append(f"{question:<12}{_shares([tally.wins, tally.ties, tally.losses])}   {_alpha(tally)}")
        text += ["", "each voter alone, and the share of equal answers with the other voters:"]
        for question, tally in by_question.items():
            for voter, counts in sorted(tally.by_voter.items()):
                own = _shares([counts[outcome] for outcome in OUTCOMES])
                text.append(f"{question:<12}{own}   {_percent(tally.agreement[voter])} {voter}")
    return text[1:] if text and not text[0] else text


def as_json(found: Aggregate) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "voters": list(found.voters),
        "ignored": list(found.ignored),
        "questions": dict(QUESTIONS),
        "results": {
            candidate: {question: _tally_json(tally) for question, tally in by_question.items()}
            for candidate, by_question in found.tallies.items()
        },
    }


def _tally_json(tally: Tally) -> dict[str, Any]:
    return {
        "win": tally.wins,
        "tie": tally.ties,
        "lose": tally.losses,
        "krippendorff_alpha": tally.alpha,
        "voters": {
            voter: {**{o: counts[o] for o in OUTCOMES}, "agreement_with_others": tally.agreement[voter]}
            for voter, counts in sorted(tally.by_voter.items())
        },
        "pairwise_agreement": [{"voters": list(pair), "equal": share} for pair, share in tally.pairwise.items()],
    }


def _shares(counts: Sequence[int]) -> str:
    total = sum(counts)
    shares = "".join(f"{count / total:>8.1%}" if total else f"{'-':>8}" for count in counts)
    return f"{shares}{total:>8}"


def _alpha(tally: Tally) -> str:
    return "unknown: fewer than two voters, or one answer only" if tally.alpha is None else f"{tally.alpha:.2f}"


def _percent(share: float | None) -> str:
    return "      -" if share is None else f"{share:>7.1%}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rollout.votes", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    count = commands.add_parser("aggregate", help="unblind votes files and count them by majority")
    count.add_argument("files", nargs="+", type=Path, help="votes files that vote.html saved")
    count.add_argument("--key", type=Path, help=f"the evaluation's {KEY_FILE}")
    count.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
