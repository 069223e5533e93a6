"""Blind A/B voting: which pictures stand left and right, the page that asks, and the key that tells afterwards.

    images ─► vote.html (pairs by number only) ─► votes JSON of each voter ─┐
           └► votes_key.json (stays with whoever evaluates) ────────────────┴► python -m rollout.votes aggregate

Order and sides are hashes of the study's seed, so the same evaluation gives the same page; neither file names nor
picture metadata in the page tell which model made a picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout.evaluation.embedding import build_page, data_uri
from rollout.evaluation.lora import BASE

KEY_FORMAT = "atelier-votes-key"
VOTES_FORMAT = "atelier-votes"
VERSION = 1
QUESTIONS = {
    "flaws": "Which picture has fewer flaws?",
    "appeal": "Which picture is more appealing?",
    "alignment": "Which picture shows better what the text asks for?",
}
"""Question -> its words. For flaws and appeal the text stays hidden, as in the pixel-space paper's human evaluation."""
ANSWERS = ("left", "tie", "right")


@dataclass(frozen=True)
class Pair:
    """One pair to vote on."""

    id: str
    number: int
    """Of the prompt."""
    candidate: str
    """The LoRA that is compared with the base."""
    candidate_side: str
    """`left` or `right`; the base is on the other."""


def blinded_pairs(candidates: Sequence[str], count: int, seed: int) -> list[Pair]:
    """Every candidate but the base against the base on each of the first `count` prompts, in the order of asking."""
    rivals = [name for name in candidates if name != BASE]
    cases = [(number, rival) for number in range(count) for rival in rivals]
    cases.sort(key=lambda case: _hash("order", seed, *case))
    return [
        Pair(f"p{place:04d}", number, rival, "left" if _hash("side", seed, number, rival) % 2 else "right")
        for place, (number, rival) in enumerate(cases)
    ]


def study_id(found: Mapping[str, Any], pairs: Sequence[Pair]) -> str:
    """16 hex digits that tie votes to their pictures and blinding."""
    checksums = {name: entry["sha256"] for name, entry in found["candidates"].items()}
    cases = [[p.id, p.number, p.candidate, p.candidate_side] for p in pairs]
    text = json.dumps([found["settings"], found["prompts"], checksums, cases], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def voting_page(found: Mapping[str, Any], images: Mapping[str, np.ndarray], pairs: Sequence[Pair]) -> str:
    """vote.html. found: `report.results`; images: candidate -> uint8 [N, h, w, 3]."""
    data = {
        "format": VOTES_FORMAT,
        "version": VERSION,
        "study": study_id(found, pairs),
        "questions": QUESTIONS,
        "pairs": [_shown(pair, found["prompts"][pair.number], images) for pair in pairs],
    }
    return build_page("vote", data)


def _shown(pair: Pair, prompt: str, images: Mapping[str, np.ndarray]) -> dict[str, str]:
    candidate, base = data_uri(images[pair.candidate][pair.number]), data_uri(images[BASE][pair.number])
    left, right = (candidate, base) if pair.candidate_side == "left" else (base, candidate)
    return {"id": pair.id, "prompt": prompt, "left": left, "right": right}


def voting_key(found: Mapping[str, Any], pairs: Sequence[Pair]) -> dict[str, Any]:
    """The contents of votes_key.json."""
    return {
        "format": KEY_FORMAT,
        "version": VERSION,
        "study": study_id(found, pairs),
        "pairs": {
            pair.id: {"prompt": found["prompts"][pair.number], "candidate": pair.candidate, "side": pair.candidate_side}
            for pair in pairs
        },
    }


def _hash(*parts: int | str) -> int:
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
