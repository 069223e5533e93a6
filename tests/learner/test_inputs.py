"""What is looked at before a run starts: a single file is as good as a directory, and which prompts will be cut."""

from __future__ import annotations

import pytest

from configs import load_config
from learner.inputs import InputError, read_inputs
from rollout.prompt_length import overlong_note
from tests.original_layout import write_single_file
from tests.tiny_families import tiny_family


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red disc\n" + "long " * 20 + "\n")
    return f"prompts.source={file}"


def config(prompts, *more):
    return load_config("quickstart", [prompts, "model.lora.target_modules=[to_q]", "evaluation.measures=[]", *more])


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart", "sd3", "flux"])
def test_a_directory_and_a_single_file_are_read_alike(family, prompts, tmp_path):
    folder = tiny_family(family, tmp_path / family)
    more = [f"model.family={family}", "learner.objective.type=spo"]
    said = read_inputs(config(prompts, f"model.pretrained={folder}", *more))
    assert said is not None and said.startswith("1 of 2 prompt is longer than 16 tokens"), said
    if family in ("sd", "sdxl", "sd3"):  # the writer of FLUX's layout takes its real width for granted
        file = write_single_file(family, folder, tmp_path / "model.safetensors")
        assert read_inputs(config(prompts, f"model.pretrained={file}", f"model.config={folder}", *more)) == said


def test_the_tokenizer_that_reads_furthest_counts(prompts, tmp_path):
    """FLUX's T5 reads on where its CLIP stops; a pipeline may read less than its tokenizer could."""
    folder = tiny_family("flux", tmp_path / "flux")
    settings = folder / "tokenizer_2" / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"model_max_length": 16', '"model_max_length": 9999'))
    model = config(prompts, f"model.pretrained={folder}", "model.family=flux").model
    assert overlong_note(model, ["long " * 20]) is None
    assert "longer than 512 tokens" in overlong_note(model, ["long " * 200])


def test_a_file_whose_tokenizer_is_nowhere_is_named(prompts, tmp_path):
    folder = tiny_family("sd", tmp_path / "sd")
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"sd/tokenizer: no tokenizer can be read there"):
        read_inputs(config(prompts, f"model.pretrained={folder}"))
