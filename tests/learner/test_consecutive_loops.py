"""The documented consecutive runs at the level of the loop: each starts from what the one before it exported."""

from __future__ import annotations

import asyncio

import pytest
import torch

from configs.data import OnlineData
from configs.load import load_config
from learner.datasets.books import DataBooks
from learner.datasets.offline import ModelEncoder, OfflineQueue
from learner.export import export_lora
from learner.loop import train
from reward import build_scorer
from rollout.adapter import deserialise_adapter
from rollout.conditioning import Conditioning
from rollout.init_lora import read_lora
from rollout.policy import load_policy
from tests.learner.inprocess import Mailbox, Rollout, Telemetry, single_process_group
from tests.learner.offline.sets import write_set
from tests.learner.test_consecutive import SAMPLER_SIZES, SIZES, documented

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Run -> its configuration and telemetry, in the documented order; sync, since nobody else rolls out."""
    folder = tmp_path_factory.mktemp("chain")
    single_process_group(folder)
    write_set(folder / "curated", "images", "folder", 4)
    found = {}
    for module, *settings in documented():
        if module != "learner.main":
            continue
        name = next(text for text in settings if text.startswith("run.name=")).partition("=")[2]
        placed = [text.replace("=runs/", f"={folder}/").replace("=curated", f"={folder}/curated") for text in settings]
        more = [*SIZES, *SAMPLER_SIZES[name], f"run.dir={folder / name}", "learner.max_batches=1"]
        sync = [] if "data.type=images" in settings else ["schedule={type: sync}"]
        config, telemetry = load_config(None, [*placed, *more, *sync]), Telemetry()
        config.run.path.mkdir()
        mailbox, cpu = Mailbox(config.run.path / "adapters"), torch.device("cpu")
        if isinstance(config.data, OnlineData):
            queue = Rollout(config, mailbox, build_scorer)
        else:
            queue = OfflineQueue(config, DataBooks(config.run.path, 2), ModelEncoder(config, cpu))
        assert train(0, 1, config, queue, mailbox, telemetry, device=cpu).finished
        _, (published,) = asyncio.run(mailbox.actor.latest())
        ends = {"before": {"reward": 0.0}, "after": {"reward": 0.0}}
        export_lora(deserialise_adapter(published), config, steps=2, **ends)
        found[name] = config, telemetry
    return found


def outputs(config, *, trained):
    """What a run's network predicts at its start, or with its own export, and what its reference predicts."""
    policy = load_policy(config.model, config.noise, "cpu", seed=0)
    if trained:
        state = read_lora(str(config.run.path))
        with torch.no_grad():
            for name, parameter in policy.trainable_parameters():
                parameter.copy_(state[name])  # rank and alpha are equal here
    generator = torch.Generator().manual_seed(9)
    x = torch.randn((2, *policy.latent_shape), generator=generator)
    text = policy.encode(["a small red circle", "a large blue square"])
    with torch.no_grad():
        own = policy.predict(x, torch.tensor([601, 1]), Conditioning(text.tensors))
        with policy.reference():
            return own, policy.predict(x, torch.tensor([601, 1]), Conditioning(text.tensors))


def test_every_run_trains(chain):
    assert list(chain) == ["sft", "sft-spo", "sft-spo-merged", "spo-pixel-simpo"]
    for name, (config, telemetry) in chain.items():
        assert any(line.get("loss/grad_norm", 0) > 0 for line in telemetry.lines.values()), name
        state = read_lora(str(config.run.path))
        assert any(bool(tensor.any()) for key, tensor in state.items() if ".lora_B." in key), name
    assert all("loss/pixel" in line for line in chain["spo-pixel-simpo"][1].lines.values() if "loss/total" in line)


def test_the_adapter_goes_on_from_where_the_first_run_ended(chain):
    trained, base = outputs(chain["sft"][0], trained=True)
    start, reference = outputs(chain["sft-spo"][0], trained=False)
    torch.testing.assert_close(start, trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reference, base, rtol=0, atol=0)
    assert not torch.equal(start, reference)


@pytest.mark.parametrize(("first", "second"), [("sft", "sft-spo-merged"), ("sft-spo", "spo-pixel-simpo")])
def test_merged_base_and_reference_are_where_the_first_run_ended(chain, first, second):
    trained, base = outputs(chain[first][0], trained=True)
    start, reference = outputs(chain[second][0], trained=False)
    assert torch.equal(start, reference)
    torch.testing.assert_close(start, trained, rtol=1e-3, atol=1e-3)
    assert (start - base).abs().max() > 10 * (start - trained).abs().max(), "far more than rounding"
