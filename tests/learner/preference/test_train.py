"""Training the preference model in one process: the objective by hand, resuming, labels, ablations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from learner.committed import CheckpointError, list_committed
from learner.datasets.images import decode_image, to_pixels
from learner.datasets.order import OrderedReader
from learner.datasets.rows import DataError
from learner.preference.batches import PairBatches, labels_from_scores
from learner.preference.output import load_start
from learner.preference.train import train_preference, training_pairs
from reward import MINIATURE, StepAwareScorer
from reward.step_aware import StepAwarePreferenceModel
from tests.learner.inprocess import Telemetry, single_process_group
from tests.learner.preference.pairs import render_folder, spm_config, weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    single_process_group(tmp_path_factory.mktemp("group"))
    return render_folder(tmp_path_factory.mktemp("pairs"), 24)


def test_run_resumes_bit_for_bit_and_its_model_scores(source: Path, tmp_path: Path) -> None:
    whole = spm_config(source, tmp_path / "whole", checkpoint={"every_steps": 1})
    telemetry = Telemetry()
    result = train_preference(0, 1, whole, telemetry, device=CPU)
    assert result.counters.step == 2 and set(result.accuracy) == {0, 701}
    assert telemetry.lines[1]["pairs/trained"] == 4 and math.isfinite(telemetry.lines[2]["loss/total"])
    assert telemetry.lines[2]["eval/accuracy_t701"] == result.accuracy[701]

    first = list_committed(tmp_path / "whole")[0]
    resumed = spm_config(source, tmp_path / "resumed", checkpoint={"every_steps": 1})
    train_preference(0, 1, resumed, Telemetry(), device=CPU, resume_from=first)
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    start = StepAwarePreferenceModel.from_pretrained(MINIATURE, MINIATURE / "step_aware.safetensors").state_dict()
    assert any(not torch.equal(left[name], start[name]) for name in left)

    folder = tmp_path / "whole" / "spm"
    scorer = StepAwareScorer.from_pretrained(folder, folder / "step_aware.safetensors")
    assert scorer.score(torch.zeros(1, 3, 64, 64), ["a red disc"], torch.tensor([0])).isfinite().all()

    other = spm_config(source, tmp_path / "other", labels={"by": "scorer"})
    with pytest.raises(CheckpointError, match=r"labels\.by is data in the checkpoint and scorer in this run"):
        train_preference(0, 1, other, None, device=CPU, resume_from=first)


def test_pictures_are_predicted_with_shared_noise(source: Path, tmp_path: Path) -> None:
    config = spm_config(source, tmp_path)
    batches = PairBatches(config, load_start(config)[1], CPU)
    rows = OrderedReader(training_pairs(config), 0).take(2)
    same = [replace(row, image_1=row.image_0) for row in rows]
    pairs = batches.make(same, [5, 6])
    assert torch.allclose(pairs.images_0, pairs.images_1, atol=1e-5), (
        "equal pictures stay equal: noise and t are shared"
    )
    assert pairs.images_0.shape == (2, 3, 64, 64) and pairs.images_0.abs().max() <= 1
    assert not torch.equal(batches.make(same, [7, 8]).timesteps, pairs.timesteps)
    clean = batches.make(rows, [5, 6], timestep=0)
    assert clean.timesteps.tolist() == [0, 0]
    own = to_pixels(decode_image(rows[0].image_0, "first"), 64)
    assert torch.equal(clean.images_0[0], own), "t = 0 is the clean picture itself"
    alone = batches.make(rows[1:], [6], timestep=0)
    assert torch.allclose(alone.images_0, clean.images_0[1:], atol=1e-4), "a row's noise is its position's"
    noisy = batches.make(rows, [5, 6], timestep=951)
    assert (noisy.images_0 - clean.images_0).abs().mean() > 0.05
    unaware = spm_config(source, tmp_path, scorer={"ablation": "no_time"})
    told = PairBatches(unaware, load_start(unaware)[1], CPU).make(rows, [5, 6], timestep=951)
    assert told.timesteps.tolist() == [0, 0]
    assert torch.allclose(told.images_0, noisy.images_0, atol=1e-5), "only what the model is told differs"


def test_augmentation_is_a_positions_own_and_only_in_training(source: Path, tmp_path: Path) -> None:
    """Every picture is varied apart, by draws that neither its neighbours nor the number of ranks change."""
    plain = spm_config(source, tmp_path)
    varied = spm_config(source, tmp_path, training={"augmentation": {"contrast": 0.1, "noise": {1: 0.2, 8: 0.1}}})
    before, after = (PairBatches(config, load_start(config)[1], CPU) for config in (plain, varied))
    rows = OrderedReader(training_pairs(plain), 0).take(2)
    same = [replace(row, image_1=row.image_0) for row in rows]
    shown, changed = before.make(same, [5, 6]), after.make(same, [5, 6])
    assert torch.equal(changed.timesteps, shown.timesteps)
    noise = (changed.images_0 - shown.images_0, changed.images_1 - shown.images_1)
    assert min(part.abs().mean() for part in noise) > 0.01
    assert not torch.allclose(*noise, atol=0.01), "each of a pair on its own"
    alone = after.make(same[1:], [6])
    assert torch.allclose(alone.images_1, changed.images_1[1:], atol=1e-4)
    at_501 = [batches.make(rows, [5, 6], timestep=501).images_0 for batches in (before, after)]
    assert torch.equal(*at_501), "not in validation"


def test_labels_from_scores() -> None:
    """softmax(0.2, 0) = .5498, .4502: they differ by tanh(0.1) = 0.0997; softmax(0.21, 0) differ by 0.1046."""
    first, second = labels_from_scores(
        torch.tensor([0.2, 0.21, -0.21, 20.0]), torch.tensor([0.0, 0.0, 0.0, 25.0]), tie_margin=0.1
    )
    assert first.tolist() == [0.5, 1, 0, 0] and second.tolist() == [0.5, 0, 1, 1]


def test_plain_trains_nothing_and_measures(source: Path, tmp_path: Path) -> None:
    config = spm_config(source, tmp_path, scorer={"ablation": "plain"}, labels={"by": "scorer"})
    result = train_preference(0, 1, config, Telemetry(), device=CPU)
    assert result.counters.step == 0 and result.accuracy == result.start_accuracy
    start = StepAwarePreferenceModel.from_pretrained(MINIATURE, MINIATURE / "step_aware.safetensors").state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in weights(tmp_path).items())


def test_bad_rows_are_named(source: Path, tmp_path: Path) -> None:
    config = spm_config(source, tmp_path)
    batches = PairBatches(config, load_start(config)[1], CPU)
    (row,) = OrderedReader(training_pairs(config), 0).take(1)
    with pytest.raises(DataError, match=r"pairs\.jsonl line \d+ image 1 cannot be decoded"):
        batches.make([replace(row, image_1=b"nothing")], [0])
    with pytest.raises(DataError, match=r"pairs\.jsonl line \d+: prompt .* has an end-of-text token"):
        batches.make([replace(row, caption="a <|endoftext|> disc")], [0])
