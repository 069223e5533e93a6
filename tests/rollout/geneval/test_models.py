"""Detector and colours with small checkpoints in the real layouts, against second computations; the whole command."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

from rollout.geneval.__main__ import main
from rollout.geneval.colours import ColourClassifier, masked_crop
from rollout.geneval.detector import Mask2FormerDetector, instances
from rollout.geneval.names import OBJECTS
from rollout.geneval.rules import COLOURS, TASKS, Detection, Verdict, judge
from rollout.geneval.tasks import Judged, read_rules, scores

PUBLISHED = Path(__file__).parents[4] / "shared" / "data"
RULES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "blue"}], "prompt": "a photo of a blue cow"},
]


def picture(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def detector_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mask2Former of random weights with COCO's 80 classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mask2former")
    backbone = SwinConfig(
        image_size=64, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, num_queries=6,
        encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32,
        id2label=dict(enumerate(OBJECTS)), label2id={name: n for n, name in enumerate(OBJECTS)},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 384, "width": 384}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model of random weights in its folder layout."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    model = open_clip.CLIP(**config)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def test_instances_by_hand() -> None:
    """One query sure of class 1 with a 2x2 mask; one sure of nothing; one whose mask is empty."""
    class_logits = torch.tensor([[0.0, np.log(8.0), 0.0], [-9.0, -9.0, 9.0], [3.0, 0.0, 0.0]])
    masks = torch.full((3, 4, 4), -5.0)
    masks[0, 1:3, 2:4] = np.log(4.0)
    found = instances(class_logits, masks, (4, 4), {0: "dog", 1: "cat"})
    (cat,) = [one for one in found if one.label == "cat"]
    assert cat.score == pytest.approx(0.8 * 0.8, abs=1e-5), "softmax 8/10, sigmoid 4/5"
    assert cat.box == (2.0, 1.0, 4.0, 3.0)
    assert cat.mask is not None and cat.mask.sum() == 4 and cat.mask[1:3, 2:4].all()
    assert all(one.score < 0.1 for one in found if one is not cat)
    doubled = instances(class_logits, masks, (8, 8), {1: "cat"})
    assert {one.label for one in doubled} == {"cat"}
    assert doubled[0].box == (5.0, 3.0, 8.0, 5.0), "0.75 ln 4 - 0.25 * 5 < 0 half a pixel outside"


def test_detections_agree_with_transformers_own_postprocessing(detector_dir: Path) -> None:
    detector = Mask2FormerDetector.from_pretrained(detector_dir)
    image = picture(384, 384)
    found = detector.detect(image)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(detector_dir).eval()
    processor = Mask2FormerImageProcessor.from_pretrained(detector_dir)
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    (theirs,) = processor.post_process_instance_segmentation(outputs, threshold=0.0, return_binary_maps=True)
    mine = sorted((one.score, one.label) for one in found)
    names = model.config.id2label
    wanted = sorted((info["score"], names[info["label_id"]]) for info in theirs["segments_info"])
    assert len(mine) == len(wanted) > 0
    assert [score for score, _ in mine] == pytest.approx([score for score, _ in wanted], abs=2e-6)
    assert sorted(label for _, label in mine) == sorted(label for _, label in wanted)


def test_masks_have_the_pictures_own_size(detector_dir: Path) -> None:
    for one in Mask2FormerDetector.from_pretrained(detector_dir).detect(picture(96, 64)):
        assert one.mask is not None and one.mask.shape == (64, 96)
        rows, columns = np.nonzero(one.mask)
        assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_the_background_of_a_crop_is_grey() -> None:
    mask = np.zeros((64, 96), dtype=bool)
    mask[10:20, 30:60] = True
    image = picture()
    crop = np.asarray(masked_crop(image, Detection("cow", 0.9, (25.0, 5.0, 65.0, 25.0), mask)))
    assert crop.shape == (20, 40, 3)
    assert np.array_equal(crop[5:15, 5:35], np.asarray(image)[10:20, 30:60])
    assert (crop[:5] == 0x99).all() and (crop[:, :5] == 0x99).all() and (crop[15:] == 0x99).all()
    unmasked = masked_crop(image, Detection("cow", 0.9, (25.0, 5.0, 65.0, 25.0)))
    assert np.array_equal(np.asarray(unmasked), np.asarray(image)[5:25, 25:65])


def test_colours_agree_with_open_clips_own_classifier(clip_dir: Path) -> None:
    classifier = ColourClassifier.from_pretrained(clip_dir)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_dir}")
    templates = ["a photo of a {} cow", "a photo of a {}-colored cow", "a photo of a {} object"]
    weights = open_clip.build_zero_shot_classifier(model.eval(), open_clip.SimpleTokenizer(), COLOURS, templates)
    found = [Detection("cow", 0.9, (float(n), 0.0, n + 40.0, 50.0)) for n in range(8)]
    image = Image.merge("RGB", [picture(seed=n).getchannel(0) for n in (1, 1, 2)])
    with torch.no_grad():
        pixels = torch.stack([preprocess(masked_crop(image, one)) for one in found])
        features = model.encode_image(pixels, normalize=True)
    wanted = [COLOURS[n] for n in (features @ weights).argmax(1).tolist()]
    assert classifier.classify(image, found) == wanted
    assert classifier.classify(image, []) == []


def test_overall_is_the_mean_of_the_six_tasks() -> None:
    judged = []
    for task, right in zip(TASKS, (4, 3, 2, 1, 0, 2), strict=True):
        for n in range(4):
            judged.append(Judged(Path("x"), {"tag": task, "prompt": f"{task} {n}"}, Verdict(n < right)))
    found = scores(judged)
    assert [found.tasks[task].mean for task in TASKS] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.5]
    assert found.overall == pytest.approx(0.5)
    assert scores(judged[:8]).overall is None
    more = [*judged, *(Judged(Path("x"), {"tag": "counting", "prompt": "n"}, Verdict(True)) for _ in range(12))]
    assert scores(more).overall == pytest.approx((1 + 0.75 + 14 / 16 + 0.25 + 0 + 0.5) / 6), "tasks weigh the same"


def rules_file(folder: Path, lines: list[object]) -> Path:
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "beauty"}, r"metadata.jsonl:1: `prompt` and `tag`"),
        ({"include": []}, r"include = \[\]"),
        ({"include": [{"class": "unicorn", "count": 1}]}, r"include\[0\] = .*unicorn"),
        ({"include": [{"class": "cow", "count": 0}]}, r"include\[0\].count = 0"),
        ({"include": [{"class": "cow", "count": 1, "color": "mauve"}]}, r"include\[0\].color = 'mauve'"),
        ({"include": [{"class": "cow", "count": 1, "position": ["left of", 0]}]}, r"include\[0\].position"),
        ({"exclude": [{"class": "cow"}]}, r"exclude\[0\].count = None"),
    ],
)
def test_broken_rules_are_refused_by_line_and_key(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rules(rules_file(tmp_path, [{**RULES[0], **change}]))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="GenEval's own files are not beside the repository")
def test_genevals_own_prompts_have_rules_that_are_understood() -> None:
    rules = read_rules(PUBLISHED / "geneval_metadata.jsonl")
    assert Counter(rule["tag"] for rule in rules) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100
    }  # fmt: skip
    names = (PUBLISHED / "geneval_object_names.txt").read_text().splitlines()
    assert names == list(OBJECTS), "every class that a prompt may ask for, in COCO's order"
    for rule in rules:  # what is asked for, seen as asked: all right; nothing seen: none
        found, colours = as_asked(rule)
        verdict = judge(rule, found, lambda group, known=colours: [known[one.box] for one in group])
        assert verdict.correct, (rule["prompt"], verdict.reasons)
        assert not judge(rule, [], lambda group: []).correct


def as_asked(rule: dict[str, Any]) -> tuple[list[Detection], dict[tuple[float, ...], str]]:
    """Detections that a rule asks for, side by side unless it says where, and the colour at each box."""
    offsets = {"left of": (-50.0, 0.0), "right of": (50.0, 0.0), "above": (0.0, -50.0), "below": (0.0, 50.0)}
    found, colours = [], {}
    for number, clause in enumerate(rule["include"]):
        for n in range(clause["count"]):
            x, y = offsets[clause["position"][0]] if "position" in clause else (200.0 * number + 20.0 * n, 0.0)
            found.append(Detection(clause["class"], 0.95, (x, y, x + 10.0, y + 10.0)))
            colours[found[-1].box] = clause.get("color", "")
    return found, colours


def test_the_command_judges_both_layouts(
    detector_dir: Path, clip_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat, own = tmp_path / "base", tmp_path / "samples"
    flat.mkdir()
    for n in range(4):
        text = PngImagePlugin.PngInfo()
        text.add_itxt("prompt", str(RULES[n % 2]["prompt"]))
        picture(seed=n).save(flat / f"{n:04d}.png", pnginfo=text)
    for n, rule in enumerate(RULES):
        (own / f"{n:05d}" / "samples").mkdir(parents=True)
        rules_file(own / f"{n:05d}", [rule])
        picture(seed=n).save(own / f"{n:05d}" / "samples" / "0000.png")
    given = ["--metadata", str(rules_file(tmp_path, RULES)), "--detector", str(detector_dir), "--clip", str(clip_dir)]
    assert main([str(flat), str(own), *given, "--out", str(tmp_path / "geneval.json")]) == 0
    out = capsys.readouterr().out
    assert "single_object" in out and "overall needs pictures of all six tasks" in out
    found = json.loads((tmp_path / "geneval.json").read_text())
    assert found["thresholds"] == {"detection": 0.3, "counting": 0.9, "max_objects": 16, "position": 0.1}
    assert [len(found["models"][name]["pictures"]) for name in ("base", "samples")] == [4, 2]
    tasks = found["models"]["base"]["tasks"]
    assert tasks["colors"]["prompts"] == 1 and found["models"]["base"]["overall"] is None

    picture().save(flat / "0004.png")
    assert main([str(flat), *given]) == 0, "a picture without a stored prompt is taken as it is numbered"
    (flat / "0001.png").rename(flat / "0002.png")
    assert main([str(flat), *given]) == 1
    assert "was made for 'a photo of a blue cow', but the rule is for 'a photo of a bench'" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), *given]) == 1
    assert "neither NNNN.png nor" in capsys.readouterr().err
    assert main([str(own), *given, "--detector", str(tmp_path / "gone")]) == 1
    assert f"detector {tmp_path / 'gone'} does not exist" in capsys.readouterr().err
    given[-1] = str(detector_dir)
    assert main([str(own), *given]) == 1
    assert "neither a weights file nor a folder with open_clip_config.json" in capsys.readouterr().err
