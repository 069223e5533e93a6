"""What can score a picture: one section for each scorer of `reward/`, told apart by `type`.

docs/scorers.md says what to download for each, in which layout, and what taste it is known to have.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from configs.base import Section
from configs.objectives import with_default_type


class StepAwareScorer(Section):
    """The step-aware preference model."""

    type: Literal["step_aware"] = "step_aware"
    clip: str = "miniature"
    """Directory or hub id of the CLIP model; `miniature` is the one in this repository."""
    checkpoint: str | None = None
    """Step-aware weights (.safetensors or .bin). Unset: the start, equal to the plain preference model."""


class PickScoreScorer(Section):
    """PickScore, a CLIP ViT-H/14 trained on the choices of Pick-a-Pic's users."""

    type: Literal["pickscore"] = "pickscore"
    clip: str
    """Directory or hub id with the weights, for instance yuvalkirstain/PickScore_v1."""
    tokenizer: str | None = None
    """Directory or hub id of the CLIP tokenizer. Unset: that of `clip`."""


def _as_text(version: Any) -> Any:
    """YAML reads 2.1 without quotes as a number."""
    return str(version) if isinstance(version, float) else version


class HpsScorer(Section):
    """Human Preference Score v2.0 or v2.1, an open_clip ViT-H-14."""

    type: Literal["hps"] = "hps"
    version: Annotated[Literal["2.0", "2.1"], BeforeValidator(_as_text)]
    """Which of the two published checkpoints `checkpoint` is; it stands in the metric's name."""
    checkpoint: str
    """HPS_v2_compressed.pt or HPS_v2.1_compressed.pt."""
    architecture: str = "ViT-H-14"
    """open_clip architecture: one of its names, or a .json file of that format."""


class ImageRewardScorer(Section):
    """ImageReward, a BLIP whose text encoder reads the picture."""

    type: Literal["imagereward"] = "imagereward"
    checkpoint: str
    """ImageReward.pt."""
    tokenizer: str
    """Directory or hub id of the bert-base-uncased tokenizer."""


class AestheticScorer(Section):
    """LAION's aesthetic predictor: a head over CLIP ViT-L/14's image embedding; reads no prompt."""

    type: Literal["aesthetic"] = "aesthetic"
    checkpoint: str
    """Weights of OpenAI's CLIP ViT-L/14 under open_clip's names."""
    head: str
    """The head, for instance sac+logos+ava1-l14-linearMSE.pth or ava+logos-l14-linearMSE.pth."""
    architecture: str = "ViT-L-14-quickgelu"
    """open_clip architecture: one of its names, or a .json file of that format (OpenAI's weights need quick GELU)."""


class ClipScoreScorer(Section):
    """CLIP score: 100 times the cosine of picture and prompt, by any CLIP in HF's format."""

    type: Literal["clip_score"] = "clip_score"
    clip: str
    """Directory or hub id of the CLIP model and its tokenizer."""


class ImportedScorer(Section):
    """A scorer of your own, by import path."""

    type: Literal["import"] = "import"
    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:callable`; called with `options`, gives an object that fulfils `reward.base.Scorer`."""
    options: dict[str, str | int | float | bool] = {}
    """Keyword arguments of the callable."""


class RemoteScorer(Section):
    """A scorer behind HTTP (`python -m reward.serve`): JSON, pictures as PNG."""

    type: Literal["remote"] = "remote"
    url: str = Field(pattern=r"^https?://\S+$")
    """Where the server listens, for instance http://10.0.0.5:8800."""
    timeout_sec: float = Field(60.0, gt=0)
    """An attempt whose answer is not complete after this long has failed, however much of it has come."""
    retries: int = Field(3, ge=0)
    """Further attempts after a timeout, a refused or broken connection or a server error; then the group fails."""
    backoff_sec: float = Field(0.5, ge=0)
    """Pause before the first further attempt; doubles with each."""
    batch_size: int = Field(16, ge=1)
    """Most pictures in one request."""


SingleScorer = Annotated[
    StepAwareScorer
    | PickScoreScorer
    | HpsScorer
    | ImageRewardScorer
    | AestheticScorer
    | ClipScoreScorer
    | ImportedScorer
    | RemoteScorer,
    Field(discriminator="type"),
]


class MixturePart(Section):
    """One part of a mixture: weight * (score - centre) / spread."""

    scorer: SingleScorer
    """The scorer."""
    weight: float
    """Its weight; negative to steer away from it."""
    centre: float = 0.0
    """Subtracted from the score first, for instance its mean over the starting model's pictures."""
    spread: float = Field(1.0, gt=0)
    """Divides the score, for instance its standard deviation there: scorers differ in scale by a factor of 100."""


class MixtureScorer(Section):
    """A weighted sum of several scorers."""

    type: Literal["mixture"] = "mixture"
    parts: list[MixturePart] = Field(min_length=1)
    """The parts: {scorer: {type: ...}, weight: 0.5}."""


ScorerSection = Annotated[
    StepAwareScorer
    | PickScoreScorer
    | HpsScorer
    | ImageRewardScorer
    | AestheticScorer
    | ClipScoreScorer
    | MixtureScorer
    | ImportedScorer
    | RemoteScorer,
    Field(discriminator="type"),
    BeforeValidator(with_default_type("step_aware")),
]
"""Any scorer. A mixture holds single scorers, so that no configuration is endless."""
