"""LAION's aesthetic predictor v2 (github.com/christophschuhmann/improved-aesthetic-predictor), a head over CLIP.

score = head(e / |e|), e the image embedding of OpenAI's ViT-L/14; the head is five linear layers without activations,
trained on ratings from 1 to 10. Two heads are published, `sac+logos+ava1-l14-linearMSE` and `ava+logos-l14-linearMSE`;
the name says which. The prompt is not read. Preprocessing is open_clip's: 8 bits, antialiased bicubic, centre crop.

Known taste: an audit (arXiv:2601.09896) found it to rate realistic landscapes, cityscapes and portraits of western and
Japanese artists highest, and to keep pictures whose captions mention women rather than men; its raters were mostly
English-speaking photographers and people who make pictures with AI. It reads no prompt, so that alone it rewards
pictures that ignore theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from reward.frozen import FrozenScorer
from reward.open_clip_model import image_size, load_open_clip
from reward.preprocess import published_pixels
from reward.score_head import ScoreHead
from reward.step_aware import unit
from reward.weights_file import read_weights, weights_version


class AestheticPredictor(FrozenScorer):
    """`Scorer`; named by head, weights of both and size."""

    def __init__(self, checkpoint: Path | str, head: Path | str, architecture: str = "ViT-L-14-quickgelu") -> None:
        """From open_clip weights and a published head; errors as `load_open_clip` and `ScoreHead`."""
        predictor = ScoreHead(read_weights(head), f"head {head}")
        clip = load_open_clip(architecture, checkpoint)
        self._image_size, width = image_size(clip), clip.visual.output_dim
        if predictor.width != width:
            raise ValueError(f"head {head} reads embeddings of {predictor.width}, {architecture} gives {width}")
        tower = nn.ModuleDict({"visual": clip.visual, "head": predictor})
        version = weights_version(checkpoint, head)
        super().__init__(tower, f"aesthetic-{Path(head).stem}-{version}-{self._image_size}px-crop")
        self._visual, self._head = clip.visual, predictor

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._head(unit(self._visual(published_pixels(images, self._image_size, "crop"))))
