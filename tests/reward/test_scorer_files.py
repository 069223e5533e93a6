"""Scorers' files are looked at wherever a configuration holds a scorer; what the hub or a server has is left alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from configs.load import load_config
from reward.scorer_files import check_scorer_files
from reward.weights_file import check_whole

AESTHETIC = "{type: aesthetic, checkpoint: /nowhere/vit.pt, head: /nowhere/head.pth}"
NESTED = {
    "rollout.scorer": ("rollout.scorer={type: clip_score, clip: /nowhere/clip}", "rollout.scorer.clip"),
    "mixture": (
        f"rollout.scorer={{type: mixture, parts: [{{scorer: {AESTHETIC}, weight: 1}}]}}",
        "rollout.scorer.parts[0].scorer.checkpoint",
    ),
    "tokenizer": (
        "rollout.scorer={type: imagereward, checkpoint: /nowhere/it.pt, tokenizer: /nowhere/bert}",
        "rollout.scorer.tokenizer",
    ),
    "held out": (f"evaluation.scorers=[{AESTHETIC}]", "evaluation.scorers[0].checkpoint"),
    "flaws": (f"rollout.sampler={{type: final_pairs, flaws: {AESTHETIC}}}", "rollout.sampler.flaws.checkpoint"),
}


def check(*overrides):
    config = load_config(None, ["learner.objective.type=spo", *overrides])
    check_scorer_files(config.rollout, "rollout")
    check_scorer_files(config.evaluation, "evaluation")


@pytest.mark.parametrize("place", NESTED)
def test_a_missing_file_is_named_by_its_field(place):
    override, field = NESTED[place]
    objective = ["learner.objective={type: dpo, beta: 100.0}"] if place == "flaws" else []
    with pytest.raises(ValueError, match="there is no such") as caught:
        check(override, *objective)
    assert str(caught.value).startswith(f"{field} = /nowhere/")


def test_what_is_bundled_on_the_hub_or_elsewhere_is_not_looked_for():
    check()
    check("rollout.scorer={type: pickscore, clip: yuvalkirstain/PickScore_v1, tokenizer: openai/clip}")
    check("rollout.scorer={type: remote, url: 'http://127.0.0.1:1'}")


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pt"])
def test_a_whole_file_passes_and_every_cut_of_it_does_not(tmp_path, name):
    file = tmp_path / name
    state = {"weight": torch.arange(200.0)}
    if name.endswith("safetensors"):
        save_file(state, file)
    else:
        torch.save(state, file)
    check_whole(file, "field")
    data = file.read_bytes()
    for kept in (0, 1, 7, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:kept])
        with pytest.raises(ValueError, match=r"^field .*truncated, or not a weights file"):
            check_whole(file, "field")


def test_a_file_by_an_old_torch_passes(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    check_whole(tmp_path / "old.pt", "field")
