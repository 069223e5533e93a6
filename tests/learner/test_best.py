"""Which adapter is kept apart as the best, also when a crash or an abandoned attempt came in between."""

from __future__ import annotations

import math

import pytest
import torch

from configs.learner import BestSection
from learner.best import ADAPTER, FOLDER, RECORD, keep_if_best, read_best
from rollout.adapter import adapter_checksum, deserialise_adapter, serialise_adapter
from rollout.versions import AdapterVersion

MOST = BestSection(metric="reward", mode="max")
LEAST = BestSection(metric="drift", mode="min")


def offer(folder, step, settings=MOST, **metrics):
    state = {"a.lora_A.weight": torch.full((2, 3), float(step))}
    version = AdapterVersion(step, step // 2, 0, adapter_checksum(state))
    return keep_if_best(folder, settings, version, serialise_adapter(state), metrics)


def kept_step(folder):
    best = read_best(folder)
    state = deserialise_adapter((folder / FOLDER / ADAPTER).read_bytes())
    assert state["a.lora_A.weight"].eq(best.step).all() and best.batch == best.step // 2
    return best.step, best.value


def test_the_best_one_stays_and_the_first_of_equals_wins(tmp_path):
    assert read_best(tmp_path) is None
    assert [offer(tmp_path, step, reward=value) for step, value in ((2, 1.0), (4, 3.0), (6, 2.0), (8, 3.0))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert kept_step(tmp_path) == (4, 3.0)


def test_less_may_be_better(tmp_path):
    for step, value in ((2, 0.5), (4, 0.1), (6, 0.3)):
        offer(tmp_path, step, LEAST, drift=value, reward=99.0)
    assert kept_step(tmp_path) == (4, 0.1)


def test_a_value_that_is_not_finite_is_never_the_best(tmp_path):
    assert not offer(tmp_path, 2, reward=math.nan) and read_best(tmp_path) is None
    offer(tmp_path, 4, reward=1.0)
    assert not offer(tmp_path, 6, reward=math.inf)
    assert kept_step(tmp_path) == (4, 1.0)


def test_what_an_abandoned_attempt_found_gives_way(tmp_path):
    offer(tmp_path, 8, reward=9.0)
    assert offer(tmp_path, 4, reward=1.0), "the run went back to a checkpoint before step 8"
    assert kept_step(tmp_path) == (4, 1.0)
    assert offer(tmp_path, 4, reward=1.0), "an evaluation that is repeated"


@pytest.mark.parametrize("damaged", [ADAPTER, RECORD])
def test_files_that_do_not_fit_each_other_are_none(tmp_path, damaged):
    offer(tmp_path, 2, reward=9.0)
    (tmp_path / FOLDER / damaged).write_bytes(b"half")
    assert read_best(tmp_path) is None
    assert offer(tmp_path, 4, reward=1.0)
    assert kept_step(tmp_path) == (4, 1.0)


def test_another_question_starts_anew(tmp_path):
    offer(tmp_path, 2, reward=9.0)
    assert offer(tmp_path, 4, LEAST, drift=0.5)
    assert read_best(tmp_path).metric == "drift"


def test_an_unknown_metric_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint\.best\.metric = drift: the evaluation has judge/crisp, reward"):
        offer(tmp_path, 2, LEAST, **{"reward": 1.0, "judge/crisp": 0.5})
