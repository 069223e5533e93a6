"""Scorers refuse damaged and foreign checkpoints and prompts that they cannot read, by file, key or row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.scorers import AestheticScorer, HpsScorer, ImageRewardScorer, PickScoreScorer
from reward import build_scorer
from reward.base import Scorer
from reward.score_head import ScoreHead
from tests.reward import published
from tests.tiny_clip import write_clip

ONE = torch.zeros(1, dtype=torch.int64)


def hps(architecture: str, checkpoint: Path) -> Scorer:
    return build_scorer(HpsScorer(version="2.1", checkpoint=str(checkpoint), architecture=architecture))


@pytest.fixture(scope="module")
def open_clip_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return published.write_open_clip(tmp_path_factory.mktemp("clip"), nested=True)


@pytest.fixture(scope="module")
def imagereward_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return published.write_imagereward(tmp_path_factory.mktemp("imagereward"))


def imagereward(checkpoint: Path, tokenizer: Path) -> Scorer:
    return build_scorer(ImageRewardScorer(checkpoint=str(checkpoint), tokenizer=str(tokenizer)))


def test_truncated(open_clip_files: tuple[str, Path], imagereward_files: tuple[Path, Path], tmp_path: Path) -> None:
    architecture, checkpoint = open_clip_files
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cut\.pt cannot be read \(truncated"):
        hps(architecture, cut)
    with pytest.raises(ValueError, match=r"cut\.pt cannot be read \(truncated"):
        imagereward(cut, imagereward_files[1])
    with pytest.raises(ValueError, match=r"cut\.pt cannot be read \(truncated"):
        build_scorer(AestheticScorer(checkpoint=str(checkpoint), head=str(cut), architecture=architecture))
    clip = write_clip(tmp_path / "clip", "small")
    weights = clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be read"):
        build_scorer(PickScoreScorer(clip=str(clip)))


def test_a_clip_with_weights_that_the_model_lacks(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip", "small")
    state = load_file(clip / "model.safetensors")
    save_file({**state, "adapter.weight": torch.zeros(2)}, clip / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"clip are another model's: 1 unexpected: adapter\.weight"):
        build_scorer(PickScoreScorer(clip=str(clip)))


def test_missing_files(open_clip_files: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt does not exist"):
        hps(open_clip_files[0], tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        hps(str(tmp_path / "nowhere.json"), open_clip_files[1])


def test_of_another_model(
    open_clip_files: tuple[str, Path], imagereward_files: tuple[Path, Path], tmp_path: Path
) -> None:
    architecture, checkpoint = open_clip_files
    with pytest.raises(ValueError, match=r"ImageReward\.pt .*does not fit CLIP: .*missing: .*unexpected: blip"):
        hps(architecture, imagereward_files[0])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not ImageReward's: no name starts with blip.visual"):
        imagereward(checkpoint, imagereward_files[1])
    other = json.loads(Path(architecture).read_text())
    other["vision_cfg"]["layers"] = 1
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"other\.json\) does not fit CLIP: .* unexpected: visual.transformer.resblo"):
        hps(str(tmp_path / "other.json"), checkpoint)
    with pytest.raises(ValueError, match="'ViT-H-15' is not one of open_clip's"):
        hps("ViT-H-15", checkpoint)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json is not JSON"):
        hps(str(tmp_path / "bad.json"), checkpoint)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json is not open_clip's"):
        hps(str(tmp_path / "bad.json"), checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"),
            "missing: .*crossattenti",
        ),
        (lambda s: s.pop("blip.visual_encoder.patch_embed.proj.weight"), "patch_embed.proj.weight is missing"),
        (lambda s: s.pop("mlp.layers.4.weight"), r"is not a score head: layers.\{0,2,4,6,7\}.weight are wanted"),
        (
            lambda s: s.update({"itm_head.weight": torch.zeros(1)}),
            "is not ImageReward's: 1 unexpected: itm_head.weight",
        ),
        (
            lambda s: s.update({f"blip.text_decoder.{n}": torch.zeros(1) for n in "ab"}),
            "2 unexpected: blip.text_decoder.a, blip.text_decoder.b",
        ),
        (
            lambda s: s.update({"blip.text_encoder.pooler.dense.weight": torch.zeros(1)}),
            "1 unexpected: blip.text_encoder.pooler.dense.weight$",
        ),
        (lambda s: s.update({"mlp.layers.9.bias": torch.zeros(1)}), "1 unexpected: mlp.layers.9.bias$"),
        (
            lambda s: s.pop("blip.visual_encoder.blocks.1.attn.qkv.bias"),
            "1 missing: blip.visual_encoder.blocks.1.attn.qkv.bias$",
        ),
        (lambda s: s.pop("blip.visual_encoder.norm.bias"), "1 missing: blip.visual_encoder.norm.bias$"),
    ],
)
def test_imagereward_with_another_set_of_names(
    imagereward_files: tuple[Path, Path], tmp_path: Path, change: object, message: str
) -> None:
    state = torch.load(imagereward_files[0], weights_only=True)
    change(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "changed.pt")
    with pytest.raises(ValueError, match=rf"changed\.pt.*{message}"):
        imagereward(tmp_path / "changed.pt", imagereward_files[1])


def test_a_tokenizer_of_another_model(imagereward_files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*published.WORDS, "one", "two", "three"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(ValueError, match="has token 15, the checkpoint's vocabulary has 15"):
        imagereward(imagereward_files[0], tmp_path)


def test_heads(open_clip_files: tuple[str, Path], tmp_path: Path) -> None:
    state = published.head_state(24)
    with pytest.raises(ValueError, match=r"layers .* do not follow on one another to 1"):
        ScoreHead({**state, "layers.2.weight": torch.zeros(12, 17)}, "head")
    with pytest.raises(ValueError, match=r"1 unexpected: layers\.9\.bias"):
        ScoreHead({**state, "layers.9.bias": torch.zeros(1)}, "head")
    torch.save(published.head_state(20), tmp_path / "head.pth")
    architecture, checkpoint = open_clip_files
    with pytest.raises(ValueError, match=r"head\.pth reads embeddings of 20, .* gives 24"):
        build_scorer(
            AestheticScorer(checkpoint=str(checkpoint), head=str(tmp_path / "head.pth"), architecture=architecture)
        )


def test_prompts_that_cannot_be_compared(
    open_clip_files: tuple[str, Path], imagereward_files: tuple[Path, Path]
) -> None:
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    for scorer in (hps(*open_clip_files), imagereward(*imagereward_files)):
        for empty in ("", "  \n"):
            with pytest.raises(ValueError, match=rf"row 1 is empty; {scorer.name.split('-')[0]}"):
                scorer.score(pictures, ["a dog", empty], torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="row 1, '漢字', has no token"):
        imagereward(*imagereward_files).score(pictures, ["a dog", "漢字"], torch.zeros(2, dtype=torch.int64))


def test_prompts_of_other_scripts_and_lengths(open_clip_files: tuple[str, Path]) -> None:
    """CLIP's tokenizer reads bytes: every script has tokens, and what is too long is cut as published."""
    scorer, picture = hps(*open_clip_files), torch.rand(1, 3, 32, 32) * 2 - 1

    def score(prompt: str) -> Tensor:
        return scorer.score(picture, [prompt], ONE)

    assert not torch.equal(score("漢字"), score("かな")) and not torch.equal(score("кот"), score("🐈"))
    assert torch.equal(score("red " * 80), score("red " * 200))


def test_a_score_that_is_not_finite_names_scorer_row_and_prompt(
    open_clip_files: tuple[str, Path], tmp_path: Path
) -> None:
    state = torch.load(open_clip_files[1], weights_only=True)["state_dict"]
    state["visual.proj"] = state["visual.proj"] * float("inf")
    torch.save(state, tmp_path / "burnt.pt")
    scorer = hps(open_clip_files[0], tmp_path / "burnt.pt")
    with pytest.raises(FloatingPointError, match=r"hps-v2\.1-.* gives nan in row 0, prompt 'a dog'"):
        scorer.score(torch.zeros(1, 3, 32, 32), ["a dog"], ONE)
