"""Every published scorer against a second computation: torchvision prepares, the bare backbone reads."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms
from transformers import CLIPModel

from configs.scorers import AestheticScorer, ClipScoreScorer, HpsScorer, ImageRewardScorer, PickScoreScorer
from reward import build_scorer
from reward.base import Scorer
from reward.preprocess import CLIP_MEAN, CLIP_STD, published_pixels
from reward.score_head import ScoreHead
from reward.weights_file import read_weights
from tests.reward import published
from tests.tiny import MAX_TOKENS, tiny_tokenizer
from tests.tiny_clip import write_clip

PROMPTS = ["a red cube", "a dog and blue cubes", "red " * 90]
REAL_HEAD = Path(__file__).parents[3] / "shared" / "data" / "sac+logos+ava1-l14-linearMSE.pth"
BICUBIC = transforms.InterpolationMode.BICUBIC


@pytest.fixture
def images() -> Tensor:
    """float32 [3, 3, 45, 70] in about [-1.2, 1.2]: neither square nor small, and beyond the range."""
    return 2.4 * torch.rand(3, 3, 45, 70, generator=torch.Generator().manual_seed(2)) - 1.2


def pictures(images: Tensor) -> list[Image.Image]:
    array = np.rint((images.clamp(-1, 1).numpy().transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
    return [Image.fromarray(picture) for picture in array]


def torchvision_crop(images: Tensor, size: int) -> Tensor:
    prepare = transforms.Compose(
        [
            transforms.Resize(size, interpolation=BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    return torch.stack([prepare(picture) for picture in pictures(images)])


def torchvision_pad(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    small = (round(height * scale), round(width * scale))
    below, right = size - small[0], size - small[1]
    prepare = transforms.Compose(
        [
            transforms.Resize(small, interpolation=BICUBIC),
            transforms.Pad([right // 2, below // 2, right - right // 2, below - below // 2]),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    return torch.stack([prepare(picture) for picture in pictures(images)])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.double(), b.double())


def check(scorer: Scorer, images: Tensor, prompts: list[str], expected: Tensor) -> None:
    """Parity, contract, independence of the batch, determinism."""
    clean = torch.zeros(len(prompts), dtype=torch.int64)
    scores = scorer.score(images, prompts, clean)
    assert scores.dtype == torch.float32 and scores.shape == (len(prompts),) and not scores.requires_grad
    torch.testing.assert_close(scores.double(), expected.double(), rtol=0, atol=2e-4)
    assert float(scores.std()) > 0.01, "pictures are told apart"
    for row in range(len(prompts)):
        part = slice(row, row + 1)
        alone = scorer.score(images[part], prompts[part], clean[part])
        torch.testing.assert_close(alone, scores[part], rtol=0, atol=1e-5)
    assert torch.equal(scorer.score(images, prompts, clean), scores)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scorer.score(images, prompts, clean), scores), "float32 whatever surrounds it"
    assert torch.equal(scorer.score(images, prompts, clean + 500), scores), "clean pictures only: no timestep is read"
    assert isinstance(scorer, Scorer) and scorer.reads == "pixels"


@pytest.mark.parametrize(("height", "width"), [(45, 70), (64, 64), (33, 32), (1, 1), (300, 20)])
def test_pixels_are_those_of_torchvision(height: int, width: int) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height)) * 2 - 1
    assert torch.allclose(published_pixels(images, 32, "crop"), torchvision_crop(images, 32), atol=1e-6)
    assert torch.allclose(published_pixels(images, 32, "pad"), torchvision_pad(images, 32), atol=1e-6)


def test_crops_round_as_their_libraries_do() -> None:
    columns = torch.arange(35).float().expand(1, 3, 32, 35) / 127.5 - 1  # 3 columns too many: 1 or 2 go on the left
    first = [
        round(float(published_pixels(columns, 32, fit)[0, 0, 0, 0]) * 255 * CLIP_STD[0] + 255 * CLIP_MEAN[0])
        for fit in ("crop_floor", "crop")
    ]
    assert first == [1, 2]


def test_pixels_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images\[1\] has values that are not finite"):
        published_pixels(torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), math.nan)]), 8)
    with pytest.raises(ValueError, match=r"images is torch.float32 \[1, 4, 8, 8\]"):
        published_pixels(torch.zeros(1, 4, 8, 8), 8)


def hf_features(folder: Path, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor, float]:
    """By HF's CLIP on pixels prepared by hand: floor of the crop's offset, as its processor does."""
    size = 64
    resize = transforms.Compose([transforms.Resize(size, interpolation=BICUBIC), transforms.ToTensor()])
    pixels = torch.stack([resize(picture) for picture in pictures(images)])
    left = (pixels.shape[-1] - size) // 2
    pixels = transforms.Normalize(CLIP_MEAN, CLIP_STD)(pixels[..., left : left + size])
    clip = CLIPModel.from_pretrained(folder).eval()
    tokens = tiny_tokenizer(folder)(prompts, padding=True, max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = clip(pixel_values=pixels, **tokens)
    return found.image_embeds, found.text_embeds, clip.logit_scale.exp().item()


def test_pickscore(tmp_path: Path, images: Tensor) -> None:
    folder = write_clip(tmp_path / "pick", "small")
    scorer = build_scorer(PickScoreScorer(clip=str(folder)))
    image, text, scale = hf_features(folder, images, PROMPTS)
    check(scorer, images, PROMPTS, scale * cosine(image, text))
    assert scorer.name.startswith("pickscore-pick-") and scorer.name.endswith("-64px-crop")
    assert build_scorer(PickScoreScorer(clip=str(folder), tokenizer=str(folder))).name == scorer.name


def test_clip_score(tmp_path: Path, images: Tensor) -> None:
    folder = write_clip(tmp_path / "clip", "small")
    image, text, _ = hf_features(folder, images, PROMPTS)
    check(build_scorer(ClipScoreScorer(clip=str(folder))), images, PROMPTS, 100 * cosine(image, text))


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_hps(tmp_path: Path, images: Tensor, version: str) -> None:
    architecture, checkpoint = published.write_open_clip(tmp_path, nested=True)
    settings = HpsScorer(version=version, checkpoint=str(checkpoint), architecture=architecture)
    scorer = build_scorer(settings)
    plain = published.plain_open_clip(architecture, checkpoint)
    with torch.no_grad():
        image = plain.encode_image(torchvision_pad(images, 32))
        text = plain.encode_text(published.open_clip_tokens(PROMPTS))
    check(scorer, images, PROMPTS, 100 * cosine(image, text))
    assert scorer.name.startswith(f"hps-v{version}-") and scorer.name.endswith("-32px-pad")


def test_aesthetic(tmp_path: Path, images: Tensor) -> None:
    architecture, checkpoint = published.write_open_clip(tmp_path, nested=False, quick_gelu=True)
    state = published.head_state(24)
    torch.save(state, tmp_path / "ava+logos-l14-linearMSE.pth")
    settings = AestheticScorer(
        checkpoint=str(checkpoint), head=str(tmp_path / "ava+logos-l14-linearMSE.pth"), architecture=architecture
    )
    scorer = build_scorer(settings)
    with torch.no_grad():
        image = published.plain_open_clip(architecture, checkpoint).encode_image(torchvision_crop(images, 32))
    expected = published.by_hand(state, image / image.norm(dim=-1, keepdim=True))
    check(scorer, images, ["", "whatever", "no prompt is read"], expected)
    assert scorer.name.startswith("aesthetic-ava+logos-l14-linearMSE-")


@pytest.mark.skipif(not REAL_HEAD.is_file(), reason="the published head is not beside the repository")
def test_the_published_aesthetic_head() -> None:
    head = ScoreHead(read_weights(REAL_HEAD), str(REAL_HEAD))
    embedding = F.normalize(torch.randn(64, 768, generator=torch.Generator().manual_seed(0)), dim=-1)
    scores = head(embedding).detach()
    assert head.width == 768 and [layer.out_features for layer in head.layers.values()] == [1024, 128, 64, 16, 1]
    expected = published.by_hand(torch.load(REAL_HEAD, weights_only=True, map_location="cpu"), embedding)
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-4)
    assert float(scores.min()) > 0 and float(scores.max()) < 11, "ratings from 1 to 10"


def attention(state: dict[str, Tensor], name: str, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """BERT's attention with its residual and norm, one head, in float64."""

    def linear(part: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.{part}.weight"].T + state[f"{name}.{part}.bias"]

    weights = linear("self.query", queries) @ linear("self.key", keys).transpose(1, 2) / 64**0.5
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None, :], -torch.inf)
    mixed = linear("output.dense", weights.softmax(-1) @ linear("self.value", keys))
    return norm(state, f"{name}.output.LayerNorm", mixed + queries)


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-12)


def imagereward_by_hand(state: dict[str, Tensor], ids: Tensor, patches: Tensor) -> Tensor:
    """[B] from token ids and patch states: BERT with cross-attention and the head, written out."""
    text = {k.removeprefix("blip.text_encoder."): v.double() for k, v in state.items() if "text_encoder" in k}
    mask, e = ids != 0, "embeddings"
    h = text[f"{e}.word_embeddings.weight"][ids] + text[f"{e}.position_embeddings.weight"][: ids.shape[1]]
    h = norm(text, f"{e}.LayerNorm", h)
    for n in range(2):
        layer = f"encoder.layer.{n}"
        h = attention(text, f"{layer}.attention", h, h, mask)
        h = attention(text, f"{layer}.crossattention", h, patches, None)
        inner = h @ text[f"{layer}.intermediate.dense.weight"].T + text[f"{layer}.intermediate.dense.bias"]
        outer = F.gelu(inner) @ text[f"{layer}.output.dense.weight"].T + text[f"{layer}.output.dense.bias"]
        h = norm(text, f"{layer}.output.LayerNorm", outer + h)
    return (published.by_hand(state, h[:, 0], "mlp.") - 0.16717362830052426) / 1.0333394966054072


def test_imagereward(tmp_path: Path, images: Tensor) -> None:
    checkpoint, folder = published.write_imagereward(tmp_path)
    scorer = build_scorer(ImageRewardScorer(checkpoint=str(checkpoint), tokenizer=str(folder)))
    state = torch.load(checkpoint, weights_only=True)
    picture = published.vit().double().eval()
    names = {k.removeprefix("blip.visual_encoder."): v for k, v in state.items() if "visual_encoder" in k}
    picture.load_state_dict(names)
    words = {word: n for n, word in enumerate(published.WORDS)}
    long = ["[CLS]", *["red"] * 33, "[SEP]"]
    texts = [["[CLS]", "a", "red", "cube", "[SEP]"], ["[CLS]", "a", "dog", "and", "blue", "cube", "##s", "[SEP]"], long]
    ids = torch.tensor([[words[word] for word in (*text, *["[PAD]"] * (35 - len(text)))] for text in texts])
    with torch.no_grad():
        patches = picture.forward_features(torchvision_crop(images, 32).double())
    check(scorer, images, PROMPTS, imagereward_by_hand(state, ids, patches))
    assert scorer.name.startswith("imagereward-v1.0-") and scorer.name.endswith("-32px-crop")
