"""Odd pictures, captions and checkpoints, given to every scorer of files: scored as said, or refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from configs.scorers import (
    AestheticScorer,
    ClipScoreScorer,
    HpsScorer,
    ImageRewardScorer,
    MixturePart,
    MixtureScorer,
    PickScoreScorer,
    StepAwareScorer,
)
from reward import build_scorer
from reward.base import Scorer
from reward.images import decode_image, image_tensor
from tests.reward import published
from tests.tiny_clip import write_clip

KINDS = ("step_aware", "pickscore", "clip_score", "hps", "imagereward", "aesthetic", "mixture")
PROMPTLESS = "aesthetic"


@dataclass(frozen=True)
class Files:
    """Small checkpoints of all kinds."""

    clip: Path
    architecture: str
    open_clip: Path
    imagereward: Path
    tokenizer: Path
    head: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("scorers")
    architecture, checkpoint = published.write_open_clip(folder / "open_clip", nested=True)
    imagereward, tokenizer = published.write_imagereward(folder / "imagereward")
    torch.save(published.head_state(24), folder / "head.pth")
    clip = write_clip(folder / "clip", "small")
    return Files(clip, architecture, checkpoint, imagereward, tokenizer, folder / "head.pth")


def section(kind: str, files: Files, weights: Path | None = None) -> Any:
    """The configuration of a scorer, its weights those of `files` or at `weights`."""
    clip, checkpoint = str(weights or files.clip), str(weights or files.open_clip)
    return {
        "step_aware": lambda: StepAwareScorer(clip=clip),
        "pickscore": lambda: PickScoreScorer(clip=clip),
        "clip_score": lambda: ClipScoreScorer(clip=clip),
        "hps": lambda: HpsScorer(version="2.1", checkpoint=checkpoint, architecture=files.architecture),
        "imagereward": lambda: ImageRewardScorer(
            checkpoint=str(weights or files.imagereward), tokenizer=str(files.tokenizer)
        ),
        "aesthetic": lambda: AestheticScorer(
            checkpoint=checkpoint, head=str(files.head), architecture=files.architecture
        ),
        "mixture": lambda: MixtureScorer(
            parts=[
                MixturePart(scorer=section("hps", files, weights), weight=0.5),
                MixturePart(scorer=section("imagereward", files), weight=1.0),
            ]
        ),
    }[kind]()


@pytest.fixture(scope="module")
def scorers(files: Files) -> dict[str, Scorer]:
    return {kind: build_scorer(section(kind, files)) for kind in KINDS}


def score(scorer: Scorer, picture: torch.Tensor, prompt: str = "a red dog") -> float:
    return scorer.score(picture[None], [prompt], torch.zeros(1, dtype=torch.int64)).item()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


LEVELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
PICTURE = Image.fromarray(LEVELS)
GREY = PICTURE.convert("L")
ODD: dict[str, tuple[Callable[[], bytes], Image.Image]] = {
    "CMYK": (lambda: encoded(PICTURE.convert("CMYK"), "TIFF"), PICTURE),
    "alpha, opaque": (lambda: encoded(PICTURE.convert("RGBA"), "PNG"), PICTURE),
    "16 bits": (lambda: encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 256 + 7), "PNG"), GREY),
    "one pixel": (lambda: encoded(PICTURE.crop((0, 0, 1, 1)), "PNG"), PICTURE.crop((0, 0, 1, 1))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_scores_the_same_whatever_its_file_looks_like(kind: str, scorers: dict[str, Scorer]) -> None:
    for name, (make, same) in ODD.items():
        found = score(scorers[kind], image_tensor(decode_image(make(), name=name)))
        assert np.isfinite(found), name
        assert found == pytest.approx(score(scorers[kind], image_tensor(same.convert("RGB"))), abs=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_captions(kind: str, scorers: dict[str, Scorer]) -> None:
    scorer, picture = scorers[kind], image_tensor(PICTURE)
    named = scorer.name if kind != "mixture" else "hps"
    for empty in ("", " \n\t"):
        if kind == PROMPTLESS:
            assert score(scorer, picture, empty) == score(scorer, picture)
        else:
            with pytest.raises(ValueError, match=f"row 0 is empty; {named.split('-')[0]}"):
                score(scorer, picture, empty)
    long = "red dog " * 60
    assert score(scorer, picture, long) == score(scorer, picture, long + "and blue"), "cut as published"
    other = "кот и собака"
    if kind in ("imagereward", "mixture"):
        with pytest.raises(ValueError, match=r"row 0, 'кот и собака', has no token that imagereward.* knows"):
            score(scorer, picture, other)
    else:
        assert np.isfinite(score(scorer, picture, other))


def test_a_folder_that_does_not_exist_is_told_by_name(files: Files, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    sections: list[tuple[Any, str]] = [
        (PickScoreScorer(clip=gone), "CLIP"),
        (PickScoreScorer(clip=str(files.clip), tokenizer=gone), "CLIP tokenizer"),
        (StepAwareScorer(clip=gone), "CLIP"),
        (StepAwareScorer(clip=gone, checkpoint=str(files.open_clip)), "CLIP"),
        (ImageRewardScorer(checkpoint=str(files.imagereward), tokenizer=gone), "BERT tokenizer"),
    ]
    for settings, what in sections:
        with pytest.raises(FileNotFoundError, match=f"^{what} {gone} does not exist; give a folder, or a hub id"):
            build_scorer(settings)


def other_weights(kind: str, files: Files, folder: Path) -> Path:
    """Weights of another model in the right place."""
    if kind in ("step_aware", "pickscore", "clip_score"):
        other = write_clip(folder / "other", "small")
        (other / "model.safetensors").write_bytes(
            (write_clip(folder / "large", "large") / "model.safetensors").read_bytes()
        )
        return other
    return files.open_clip if kind == "imagereward" else files.imagereward


def cut_weights(kind: str, files: Files, folder: Path) -> Path:
    if kind in ("step_aware", "pickscore", "clip_score"):
        cut = write_clip(folder / "cut", "small")
        weights = cut / "model.safetensors"
    else:
        cut = weights = folder / "cut.pt"
        weights.write_bytes((files.imagereward if kind == "imagereward" else files.open_clip).read_bytes())
    weights.write_bytes(weights.read_bytes()[:-5000])
    return cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_is_cut_or_another_models_is_refused_by_name(kind: str, files: Files, tmp_path: Path) -> None:
    cut = cut_weights(kind, files, tmp_path)
    with pytest.raises(ValueError, match=f"{cut}.* cannot be read"):
        build_scorer(section(kind, files, cut))
    other = other_weights(kind, files, tmp_path)
    with pytest.raises(ValueError, match=f"{other}.*(does not fit|is not ImageReward's|of another shape)"):
        build_scorer(section(kind, files, other))
