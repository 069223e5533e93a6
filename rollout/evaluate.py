"""Is a LoRA better than its base? Same prompts and seeds, scored, measured, and laid side by side.

    python -m rollout.evaluate --base miniature --lora runs/quickstart/lora --prompts miniature \\
        --scorers step_aware --measures judge --out evaluations/quickstart

Pictures are sampled as in the papers (DDIM, 20 steps, guidance 5, eta 1), or as `--family` has it. Run again, it goes
on where it stopped.

    OUT/results.json        every figure with its interval, and every picture's scores
    OUT/evaluate.html       table and pictures side by side, one file, works offline
    OUT/vote.html           blind A/B voting; OUT/votes_key.json unblinds: python -m rollout.votes aggregate
    OUT/sheet.png  OUT/images/<model>/NNNN.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reward import build_scorer
from rollout.contact_sheet import before_after, grid
from rollout.evaluation.ballot import blinded_pairs, voting_key, voting_page
from rollout.evaluation.lora import BASE, Candidate, EvaluatedModel, candidates
from rollout.evaluation.measuring import CHOICES, build_measures, parse_limits, warn_of_changes
from rollout.evaluation.page import comparison_page
from rollout.evaluation.pictures import PictureFolder, open_folder, write_json, write_whole
from rollout.evaluation.report import notes, results, table
from rollout.evaluation.scoring import check_scorers, score_pictures
from rollout.evaluation.settings import SamplingSettings, evaluation_prompts, parse_scorer
from rollout.families import FAMILIES

_SHEET_PICTURES = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 evaluated, 1 refused, 2 wrong usage."""
    options = _parse(arguments)
    try:
        found = evaluate_loras(options)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(["", table(found), "", *notes(found), ""]))
    for name in ("evaluate.html", "vote.html", "results.json", "sheet.png"):
        if (options.out / name).exists():
            print(f"  {options.out / name}")
    return 0


def evaluate_loras(options: argparse.Namespace) -> dict[str, Any]:
    """Sample, score, write everything below `options.out`; returns the contents of results.json.

    Raises ValueError (what was given cannot be evaluated, with the reason and the fix), OSError, FloatingPointError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = SamplingSettings(**{f.name: getattr(options, f.name) for f in fields(SamplingSettings) if f.init})
    model, noise = settings.model(), settings.noise()
    prompts = evaluation_prompts(options.prompts, options.num_prompts, options.repeats)
    sections = [parse_scorer(text) for text in options.scorers]
    limits = parse_limits(options.warn_change, options.measures)
    entrants = candidates(options.lora)
    folder = open_folder(options.out, settings.to_json(), prompts, entrants)
    scorers = [build_scorer(section, device) for section in sections]
    check_scorers(scorers)
    measuring = build_measures(options.measures, options.embedding, options.batch_size, device)

    _sample(EvaluatedModel(model, noise, device), folder, entrants, options.batch_size)

    images = {entrant.name: folder.load(entrant) for entrant in entrants}
    _refuse_equal_pictures(entrants, images)
    scores = {
        name: score_pictures(
            pictures, prompts, scorers, measuring.single, measuring.sets, device=device, batch_size=options.batch_size
        )
        for name, pictures in images.items()
    }
    warn_of_changes(entrants, scores, limits)
    found = results(folder.settings, prompts, entrants, scores)
    _write(options, found, images)
    return found


def _sample(model: EvaluatedModel, folder: PictureFolder, entrants: Sequence[Candidate], batch_size: int) -> None:
    for entrant in entrants:
        with model.candidate(entrant) as policy:  # entered even if nothing is missing: a LoRA's faults are always told
            folder.sample(entrant, policy, batch_size, _progress)


def _refuse_equal_pictures(entrants: Sequence[Candidate], images: dict[str, np.ndarray]) -> None:
    for entrant in entrants:
        if entrant.name != BASE and np.array_equal(images[entrant.name], images[BASE]):
            raise ValueError(
                f"--lora {entrant.file}: changes nothing: its {len(images[BASE])} pictures are exactly the base's, so "
                "there is nothing to compare; leave it out, or evaluate a longer training"
            )


def _write(options: argparse.Namespace, found: dict[str, Any], images: dict[str, np.ndarray]) -> None:
    out, count = options.out, min(options.page_prompts, len(found["prompts"]))
    write_json(out / "results.json", found)
    write_whole(out / "evaluate.html", comparison_page(found, images, count).encode())
    write_whole(out / "sheet.png", _sheet(images, found["prompts"]))
    if len(images) > 1:
        pairs = blinded_pairs(list(images), count, options.blind_seed)
        write_whole(out / "vote.html", voting_page(found, images, pairs).encode())
        write_json(out / "votes_key.json", voting_key(found, pairs))


def _sheet(images: dict[str, np.ndarray], prompts: Sequence[str]) -> bytes:
    """The base beside the last LoRA given, or the base alone."""
    names, captions = list(images), list(prompts[:_SHEET_PICTURES])
    first = images[BASE][:_SHEET_PICTURES]
    if len(names) == 1:
        return grid(first, captions)
    return before_after(first, images[names[-1]][:_SHEET_PICTURES], captions, heads=(BASE, names[-1]))


def _progress(name: str, done: int, total: int) -> None:
    print(f"{name}: {done}/{total} pictures", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = SamplingSettings(base="miniature")
    parser = argparse.ArgumentParser(prog="python -m rollout.evaluate", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--base", default=defaults.base, help="directory or hub id of the pipeline; `miniature` is the bundled one")
    add("--lora", action="append", default=[], metavar="DIR|FILE", help="a LoRA to compare with the base; repeatable")
    add("--prompts", default="miniature", metavar="FILE", help=".txt, .json or .jsonl; `miniature`: the held-out list")
    add("--num-prompts", type=_positive, help="the first this many prompts (default: all)")
    add("--repeats", type=_positive, default=1, help="pictures of each prompt (GenEval: 4)")
    add("--scorers", nargs="*", default=["step_aware"], metavar="SCORER", help="type, type:key=value,.., or {type: ..}")
    add("--measures", nargs="*", default=[], choices=CHOICES, help="measures beside the scores")
    add("--embedding", default="pixels", help="what diversity compares: pixels, or a CLIP in HF's format")
    add("--warn-change", nargs="*", default=[], metavar="TAG=LIMIT", help="appearance/saturation=10: warn beyond it")
    add("--out", type=Path, required=True, help="folder of results; begun ones are completed")
    add("--seed", type=int, default=defaults.seed, help="seed of the first picture (default: %(default)s)")
    add("--steps", type=int, default=defaults.steps, help="denoising steps (default: %(default)s, as in the papers)")
    add("--guidance", type=float, help="guidance scale (default: the family's; sd, sdxl: 5 as in the papers)")
    add("--eta", type=float, help="stochasticity of DDIM (default: 1)")
    add("--noise-level", type=float, help="stochasticity of the flow step of sd3 and flux (default: 0.7)")
    add("--negative-prompt", default=defaults.negative_prompt, help="what guidance pushes away from")
    add("--image-size", type=int, help="pixels (default: the model's own)")
    add("--dtype", default=defaults.dtype, help="of the base: auto, float32, bfloat16, float16")
    add("--family", default=defaults.family, choices=sorted(FAMILIES), help="model family (default: %(default)s)")
    add("--config", metavar="DIR", help="of a base in one .safetensors file: its configuration and tokenizers")
    add("--vae", metavar="DIR", help="an autoencoder in place of the base's own")
    add("--no-t5", dest="t5", action="store_false", help="sd3 without its T5 text encoder")
    add("--batch-size", type=_positive, default=16, help="pictures sampled or scored together (default: %(default)s)")
    add("--page-prompts", type=_positive, default=64, help="pictures shown and voted on (default: %(default)s)")
    add("--blind-seed", type=int, default=0, help="seed of order and sides in the vote (default: %(default)s)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
