"""Mixtures, scorers by import path, and the configuration sections of both."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from configs.load import build_config
from configs.scorers import ImportedScorer, MixturePart, MixtureScorer, ScorerSection
from reward import SCORERS, build_scorer
from reward.base import Reads
from reward.mixture import Mixture, Part

HERE = "tests.reward.test_composed_scorers"


class Channel:
    """Mean of one channel."""

    def __init__(self, channel: int, gain: float = 1.0, reads: Reads = "pixels") -> None:
        self.name, self.reads, self.device = f"channel{channel}", reads, "cpu"
        self._channel, self._gain = channel, gain

    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        return images[:, self._channel].mean(dim=(1, 2)) * self._gain

    def to(self, device: torch.device | str) -> Channel:
        self.device = str(device)
        return self


IMAGES = torch.tensor([[0.5, -0.25, 0.75], [0.0, 1.0, -1.0]]).view(2, 3, 1, 1).expand(2, 3, 4, 4)
CALL = (IMAGES, ["a", "b"], torch.zeros(2, dtype=torch.int64))


def channel(number: int, **more: str | int | float | bool) -> ImportedScorer:
    return ImportedScorer(target=f"{HERE}:Channel", options={"channel": number, **more})


def test_a_mixture_is_the_weighted_sum() -> None:
    mixture = build_scorer(
        MixtureScorer(
            parts=[
                MixturePart(scorer=channel(0), weight=2.0),
                MixturePart(scorer=channel(1), weight=-0.5, centre=0.25, spread=0.5),
            ]
        )
    )
    # 2 · 0.5 − 0.5 · (−0.25 − 0.25) / 0.5 = 1.5 ;  2 · 0 − 0.5 · (1 − 0.25) / 0.5 = −0.75
    assert mixture.score(*CALL).tolist() == [1.5, -0.75] and mixture.score(*CALL).dtype == torch.float32
    assert mixture.name == "mixture+2*[channel0]-0.5*[(x-0.25)/0.5 channel1]"


def test_a_mixture_moves_its_parts_and_is_as_loud_as_they_are() -> None:
    parts = [Channel(0), Channel(2)]
    Mixture([Part(part, 1.0) for part in parts]).to("meta")
    assert [part.device for part in parts] == ["meta", "meta"]
    with pytest.raises(FloatingPointError, match="channel2 gives inf in row 0, prompt 'a'"):
        Mixture([Part(Channel(0), 1.0), Part(Channel(2, gain=float("inf")), 1.0)]).score(*CALL)
    with pytest.raises(ValueError, match="parts read latent and pixels"):
        Mixture([Part(Channel(0), 1.0), Part(Channel(0, reads="latent"), 1.0)])
    with pytest.raises(ValueError, match="no parts"):
        Mixture([])


def not_a_scorer() -> object:
    return object()


def test_by_import_path() -> None:
    assert build_scorer(channel(2, gain=4.0)).score(*CALL).tolist() == [3.0, -4.0]
    for target, message in (
        ("no.such.module:Thing", "cannot be imported: No module"),
        (f"{HERE}:Nothing", "cannot be imported: .*no attribute 'Nothing'"),
        (f"{HERE}:not_a_scorer", "gives a object, which lacks something of reward.base.Scorer"),
    ):
        with pytest.raises(ValueError, match=f"'{target}' {message}"):
            build_scorer(ImportedScorer(target=target))
    with pytest.raises(ValueError, match="reads 'sound'"):
        build_scorer(channel(0, reads="sound"))


def test_every_section_has_its_factory() -> None:
    union = TypeAdapter(ScorerSection)
    types = {schema["properties"]["type"]["default"] for schema in union.json_schema()["$defs"].values()
             if "type" in schema["properties"]}  # fmt: skip
    assert types == SCORERS.keys()
    with pytest.raises(ValidationError, match="string_pattern_mismatch"):
        union.validate_python({"type": "import", "target": "no colon"})
    with pytest.raises(ValidationError, match="string_pattern_mismatch"):
        union.validate_python({"type": "remote", "url": "file:///etc/passwd"})
    with pytest.raises(ValidationError, match="union_tag_invalid"):  # no mixture in a mixture: sections end
        inner = {"scorer": {"type": "mixture", "parts": []}, "weight": 1.0}
        union.validate_python({"type": "mixture", "parts": [inner]})


def test_a_whole_configuration_with_a_mixture() -> None:
    parts = [
        {"scorer": {"type": "clip_score", "clip": "/models/clip"}, "weight": 0.5},
        {"scorer": {"type": "hps", "version": "2.1", "checkpoint": "hps.pt"}, "weight": 1.0, "spread": 2.0},
    ]
    scorer = build_config({"rollout": {"scorer": {"type": "mixture", "parts": parts}}}).rollout.scorer
    assert isinstance(scorer, MixtureScorer) and [part.scorer.type for part in scorer.parts] == ["clip_score", "hps"]
