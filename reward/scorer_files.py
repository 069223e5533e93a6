"""The files that scorers' sections name, looked at before anything is loaded: are they there, and whole?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs.base import Section
from configs.scorers import ClipScoreScorer, PickScoreScorer, SingleScorer, StepAwareScorer
from configs.tree import sections_of
from reward.weights_file import check_whole, folder_or_hub_id, weight_files

_SCORERS = sections_of(SingleScorer)
_FOLDERS, _FILES = ("clip", "tokenizer"), ("checkpoint", "head")
_BUNDLED = "miniature"
_HINT = "docs/scorers.md says what to download"


def check_scorer_files(section: Section, path: str) -> None:
    """Look at the files of every scorer within `section`, which is called `path`; hub ids are left to the hub.

    Raises ValueError, naming the field, for a file or folder that is not there, that is no model's, or that is cut
    short. Reads headers and directories of files alone.
    """
    for place, scorer in _scorers(section, path):
        for name in _FOLDERS:
            folder = getattr(scorer, name, None)
            if folder is not None and folder != _BUNDLED:
                _check_folder(f"{place}.{name}", folder, weights=_reads_weights(scorer, name))
        for name in _FILES:
            file = getattr(scorer, name, None)
            if file is not None:
                _check_file(f"{place}.{name}", Path(file))


def _scorers(section: Section, path: str) -> Iterator[tuple[str, Section]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        named = [(f"{path}.{name}", value)]
        if isinstance(value, list):
            named = [(f"{path}.{name}[{number}]", part) for number, part in enumerate(value)]
        for place, part in named:
            if isinstance(part, _SCORERS):
                yield place, part
            elif isinstance(part, Section):
                yield from _scorers(part, place)


def _reads_weights(scorer: Section, name: str) -> bool:
    """Does the scorer read more of this folder than a tokenizer and a configuration?"""
    if isinstance(scorer, StepAwareScorer):
        return name == "clip" and scorer.checkpoint is None
    return name == "clip" and isinstance(scorer, PickScoreScorer | ClipScoreScorer)


def _check_folder(field: str, place: str, *, weights: bool) -> None:
    try:
        folder_or_hub_id(place, "it")
    except FileNotFoundError as error:
        raise ValueError(f"{field} = {place}: there is no such folder; {_HINT}") from error
    folder = Path(place)
    if not folder.exists():
        return  # the hub's
    if not (folder / "config.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{field} = {place}: neither config.json nor tokenizer_config.json there; {_HINT}")
    if not weights:
        return
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{field} = {place}: no weights there (.safetensors or .bin); {_HINT}")
    for file in files:
        check_whole(file, field)


def _check_file(field: str, file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{field} = {file}: there is no such file; {_HINT}")
    check_whole(file, field)
