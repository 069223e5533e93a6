"""Step-wise rollouts of SDXL, PixArt, SD3 and FLUX train under the engine, and what is published rolls out again."""

import math

import pytest
import torch

from configs import AtelierConfig
from configs.learner import LearnerSection
from configs.model import LoraSection, ModelSection, NoiseSection
from configs.rollout import StepwiseSampler as Settings
from configs.schema import RunSection
from learner.batching import split_updates
from learner.engine import build_engine, gather_trained
from learner.export import check_trained
from learner.update import Updater
from rollout.adapter import adapter_checksum, deserialise_adapter, serialise_adapter
from rollout.policy import load_policy
from rollout.prompts import PromptItem
from rollout.stepwise import StepwiseSampler
from tests.fakes import RedScorer
from tests.learner.inprocess import single_process_group
from tests.tiny_families import tiny_family

ITEMS = [PromptItem(0, "a", 100), PromptItem(1, "bb", 101)]


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    single_process_group(tmp_path_factory.mktemp("group"))


@pytest.mark.parametrize("family", ["sdxl", "pixart", "sd3", "flux"])
def test_rollout_update_and_back(family, tmp_path):
    folder = tiny_family(family, tmp_path / "base")
    model = ModelSection(family=family, pretrained=str(folder), image_size=32, lora=LoraSection(rank=2))
    noise = NoiseSection(num_steps=5)
    config = AtelierConfig(run=RunSection(name="run", dir=tmp_path / "run"), model=model, noise=noise)
    worker = load_policy(model, noise, "cpu", seed=0)
    sampler = StepwiseSampler(worker, RedScorer(), Settings(num_candidates=2, threshold=0.0, block_length=2))
    groups = sampler.sample(ITEMS, policy_step=0, adapter_sha256="0" * 64, worker="w")
    policy = load_policy(model, noise, "cpu", seed=0, network_only=True)
    before = policy.adapter_state()
    settings = LearnerSection(micro_batch_pairs=3, groups_per_batch=2)
    engine = build_engine(policy, settings)
    updater = Updater(policy, engine, settings, 1, seed=0)
    dealt = split_updates(groups, 0, 2)
    losses = []
    for step, plan in enumerate(updater.plan(dealt)):
        result = updater.run(groups, plan, 1e-2, step=step)
        assert not result.skipped and result.grad_norm > 0
        losses.append(result.means["loss"])
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3), "the ratio is 1 before the first update"
    trained = gather_trained(engine, policy)
    assert any(not torch.equal(trained[name], before[name]) for name in before)
    check_trained(trained, config.model)
    worker.load_adapter(deserialise_adapter(serialise_adapter(trained)), adapter_checksum(trained))
    again = sampler.sample(ITEMS, policy_step=2, adapter_sha256="1" * 64, worker="w")
    assert not torch.equal(again[0].x_prev_win, groups[0].x_prev_win)
