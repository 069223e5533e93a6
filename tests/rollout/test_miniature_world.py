"""The miniature's world, judge and tokenizer: what needs no trained weights."""

import random

import pytest
import torch

from rollout.miniature.judge import Judge, compare, judge_captions, summarise
from rollout.miniature.tokens import grammar_words, write_tokenizer
from rollout.miniature.training import SHIPPED, sample_batch
from rollout.miniature.world import (
    FINISHES,
    HATCH,
    Item,
    Scene,
    caption,
    captions,
    is_heldout,
    parse_caption,
    render,
    sample_scene,
)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_caption_reads_as_written() -> None:
    pair = (Item("small", "red", "circle", "left"), Item("large", "blue", "square", "right"))
    text = "a small red circle on the left and a large blue square on the right on a white background"
    assert caption(Scene(pair, "white")) == text
    assert parse_caption(text) == Scene(pair, "white")


def test_captions_and_scenes_are_one_to_one() -> None:
    rng = random.Random(0)
    for scene in (sample_scene(rng) for _ in range(500)):
        assert parse_caption(caption(scene)) == scene


@pytest.mark.parametrize("text", ["", "a red circle", "a small red circle on the left on a white background, crisp"])
def test_text_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        parse_caption(text)


def test_bundled_prompts_are_split_by_the_hash() -> None:
    train = (SHIPPED / "prompts_train.txt").read_text().splitlines()
    heldout = (SHIPPED / "prompts_heldout.txt").read_text().splitlines()
    assert (len(set(train)), len(set(heldout))) == (2000, 256)
    assert not any(map(is_heldout, train)) and all(map(is_heldout, heldout))
    assert train == captions("train", 2000, seed=1) and heldout == captions("heldout", 256, seed=2)


def test_training_scenes_depend_on_seed_and_step_alone() -> None:
    scenes, finishes, draw = sample_batch(7, 3, 50)
    again, finishes_again, draw_again = sample_batch(7, 3, 50)
    assert scenes == again and finishes == finishes_again
    assert torch.equal(render(scenes, finishes, draw), render(again, finishes_again, draw_again))
    assert not any(is_heldout(caption(scene)) for scene in scenes)
    assert scenes != sample_batch(7, 4, 50)[0]


def test_finishes_differ_only_at_the_object() -> None:
    scene = Scene((Item("medium", "green", "circle", "centre"),), "grey")
    crisp, soft, hatched = render([scene] * 3, list(FINISHES))
    assert torch.equal(crisp[:, :12], soft[:, :12]) and torch.equal(crisp[:, :12], hatched[:, :12])
    assert torch.allclose(crisp[:, 32, 32], torch.tensor([0.15, 0.60, 0.20]) * 2 - 1)
    stripes = (hatched - crisp)[:, 28:36, 28:36]
    assert stripes.abs().max().item() == pytest.approx(2 * HATCH) and stripes.mean().abs() < 1e-6
    assert (soft - crisp).abs().max() > 0.2
    assert crisp.dtype == torch.float32 and crisp.abs().max() <= 1


def test_judge_reads_fresh_renders(judge: Judge) -> None:
    scenes, finishes, draw = sample_batch(11, 0, 300)
    readings = judge.read(render(scenes, finishes, draw))
    verdicts = [compare(seen, scene) for seen, scene in zip(readings, scenes, strict=True)]
    for key in ("shape", "colour", "background", "position", "size"):
        assert summarise(verdicts)[key] >= 0.98
    assert sum(seen.finish == finish for seen, finish in zip(readings, finishes, strict=True)) >= 0.98 * 300
    assert max(seen.unexplained for seen, finish in zip(readings, finishes, strict=True) if finish != "hatched") < 0.02


def test_judge_tolerates_noise_and_blank_pictures(judge: Judge) -> None:
    scenes, finishes, draw = sample_batch(12, 0, 60)
    noisy = render(scenes, finishes, draw) + 0.05 * torch.randn(60, 3, 64, 64, generator=draw)
    verdicts = judge_captions(noisy, [caption(scene) for scene in scenes], judge)
    assert summarise(verdicts)["core"] >= 0.95
    assert sum(v["finish"] == finish for v, finish in zip(verdicts, finishes, strict=True)) >= 57
    assert judge.read(torch.zeros(1, 3, 64, 64))[0].scene.background == "grey"


def test_a_missing_second_object_is_not_forgiven(judge: Judge) -> None:
    red, blue = Item("medium", "red", "circle", "left"), Item("medium", "blue", "square", "right")
    seen = judge.read(render([Scene((red,), "white")], ["crisp"]))[0]
    verdict = compare(seen, Scene((red, blue), "white"))
    assert not verdict["shape"] and not verdict["colour"] and verdict["background"] and not verdict["core"]


def test_every_word_is_one_token_and_any_text_tokenises(tmp_path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    for word in grammar_words():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    for text in captions("train", 100, seed=5):
        assert len(tokenizer(text).input_ids) == len(text.split()) + 2 <= tokenizer.model_max_length == 32
    ids = tokenizer("A Photo of a crayon, übermäßig 日本").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1] and max(ids) < len(tokenizer)
