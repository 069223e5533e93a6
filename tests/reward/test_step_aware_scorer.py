"""The scorer around the step-aware model: contract, batching, prompts, names, construction from a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

import reward
from configs.scorers import StepAwareScorer as Settings
from reward import build_scorer
from reward.base import Scorer
from reward.step_aware import StepAwarePreferenceModel
from reward.step_aware_scorer import StepAwareScorer, load_tokenizer, tokenize
from tests.tiny import MAX_TOKENS, tiny_tokenizer

PROMPTS = ["a red cube", "a dog", "a red cube", "x", "héllo 漢字 " * 9]
Make = Callable[[Path], StepAwarePreferenceModel]


@pytest.fixture
def checkpoint(small_clip: Path, conditioned: Make, tmp_path: Path) -> Path:
    conditioned(small_clip).save_checkpoint(tmp_path / "spm.safetensors")
    return tmp_path / "spm.safetensors"


@pytest.fixture
def scorer(small_clip: Path, checkpoint: Path) -> StepAwareScorer:
    return StepAwareScorer.from_pretrained(small_clip, checkpoint)


def test_agrees_with_the_model(
    small_clip: Path, scorer: StepAwareScorer, conditioned: Make, pictures: torch.Tensor, timesteps: torch.Tensor
) -> None:
    ids = tiny_tokenizer(small_clip)(
        PROMPTS, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )["input_ids"]
    scores = scorer.score(pictures, PROMPTS, timesteps)
    assert scores.dtype == torch.float32 and scores.shape == (5,) and not scores.requires_grad
    expected = conditioned(small_clip).score(pictures, ids, timesteps).detach()
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_does_not_depend_on_the_batch(scorer: StepAwareScorer, pictures: torch.Tensor, timesteps: torch.Tensor) -> None:
    together = scorer.score(pictures, PROMPTS, timesteps)
    for n in range(5):
        alone = scorer.score(pictures[n : n + 1], PROMPTS[n : n + 1], timesteps[n : n + 1])
        torch.testing.assert_close(alone, together[n : n + 1], rtol=0, atol=1e-5)


def test_remembered_prompts_change_no_bit(
    small_clip: Path, checkpoint: Path, pictures: torch.Tensor, timesteps: torch.Tensor
) -> None:
    fresh, used = (StepAwareScorer.from_pretrained(small_clip, checkpoint) for _ in range(2))
    used.score(pictures[:3], ["something else", PROMPTS[4], PROMPTS[0]], timesteps[:3])
    assert torch.equal(fresh.score(pictures, PROMPTS, timesteps), used.score(pictures, PROMPTS, timesteps))
    assert torch.equal(fresh.score(pictures, PROMPTS, timesteps), fresh.to("cpu").score(pictures, PROMPTS, timesteps))


def test_scores_are_float32_whatever_surrounds_them(
    scorer: StepAwareScorer, pictures: torch.Tensor, timesteps: torch.Tensor
) -> None:
    scores = scorer.score(pictures, PROMPTS, timesteps)
    scorer.to("cpu")  # forgets the prompts
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scorer.score(pictures, PROMPTS, timesteps), scores)


def test_name_tells_checkpoint_and_size(small_clip: Path, scorer: StepAwareScorer) -> None:
    assert isinstance(scorer, Scorer) and scorer.reads == "pixels"
    start = StepAwareScorer.from_pretrained(small_clip)
    assert start.name == f"step_aware-{small_clip.name}-start-64px"
    assert scorer.name.startswith(f"step_aware-{small_clip.name}-") and scorer.name != start.name


@pytest.mark.parametrize(
    ("images", "prompts", "timesteps", "message"),
    [
        (torch.zeros(2, 3, 8, 8), ["a"], torch.tensor([0, 0]), "1 prompts for 2 images"),
        (torch.zeros(2, 3, 8, 8), ["a", "b"], torch.tensor([0.0, 0.0]), "timesteps is torch.float32"),
        (torch.zeros(2, 3, 8, 8), ["a", "b"], torch.tensor(0), r"timesteps is torch.int64 \[\]"),
        (torch.zeros(3, 8, 8), ["a"] * 3, torch.zeros(3).long(), r"images is torch.float32 \[3, 8, 8\]"),
        (torch.zeros(1, 4, 8, 8), ["a"], torch.tensor([0]), r"expected floating point \[B, 3, H, W\]"),
    ],
)
def test_contract(
    scorer: StepAwareScorer, images: torch.Tensor, prompts: list[str], timesteps: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scorer.score(images, prompts, timesteps)


def letters_only(folder: Path, end_last: bool = True) -> CLIPTokenizer:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    special = ["<|startoftext|>", "<|endoftext|>"] if end_last else ["<|endoftext|>", "<|startoftext|>"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *special]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=8)


def test_prompt_that_would_be_cut_at_an_unknown_character(tmp_path: Path) -> None:
    tokenizer = letters_only(tmp_path / "letters")
    assert tokenize(tokenizer, ["red", "red cube and more"]).shape == (2, 8)
    with pytest.raises(ValueError, match="'3 red cubes' has an end-of-text token, or a character"):
        tokenize(tokenizer, ["red", "3 red cubes"])


def test_tokenizer_has_to_fit_the_model(small_clip: Path, tmp_path: Path) -> None:
    model = StepAwarePreferenceModel.from_pretrained(small_clip)
    assert load_tokenizer(small_clip, model).model_max_length == MAX_TOKENS
    letters_only(tmp_path / "letters")
    with pytest.raises(ValueError, match="ends prompts with token 53, the model pools at token"):
        load_tokenizer(tmp_path / "letters", model)
    model.model.config.text_config.vocab_size = 50
    with pytest.raises(ValueError, match="has token 53, the model's vocab_size is 50"):
        load_tokenizer(tmp_path / "letters", model)


def test_tokenizer_under_the_early_default_of_the_config(tmp_path: Path, small_clip: Path) -> None:
    """eos_token_id 2 means that the highest id is pooled at, whatever the config says."""
    model = StepAwarePreferenceModel.from_pretrained(small_clip)
    model.model.config.text_config.eos_token_id = 2
    letters_only(tmp_path / "last")
    load_tokenizer(tmp_path / "last", model)
    letters_only(tmp_path / "first", end_last=False)
    with pytest.raises(ValueError, match="ends prompts with token 52, the model pools at token 53"):
        load_tokenizer(tmp_path / "first", model)


def test_built_from_a_configuration(small_clip: Path, checkpoint: Path) -> None:
    start = build_scorer(Settings(clip=str(small_clip)), "cpu")
    trained = build_scorer(Settings(clip=str(small_clip), checkpoint=str(checkpoint)), "cpu")
    assert start.name != trained.name


def test_unknown_type_names_the_known(small_clip: Path) -> None:
    settings = Settings(clip=str(small_clip)).model_copy(update={"type": "pick"})
    with pytest.raises(ValueError, match=r"'pick' is unknown; known: aesthetic, .*step_aware"):
        build_scorer(settings, "cpu")


def test_miniature_brings_its_checkpoint(
    small_clip: Path, checkpoint: Path, conditioned: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "spm"
    tiny_tokenizer(folder)
    (folder / "config.json").write_bytes((small_clip / "config.json").read_bytes())
    (folder / "step_aware.safetensors").write_bytes(checkpoint.read_bytes())
    monkeypatch.setattr(reward, "MINIATURE", folder)
    name = build_scorer(Settings(), "cpu").name
    assert name.startswith("step_aware-spm-") and "start" not in name
