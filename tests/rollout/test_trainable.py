"""A policy whose whole network is trained: what is trained, the frozen copy, and how weights are swapped."""

from __future__ import annotations

import pytest
import torch

from configs.model import ModelSection, NoiseSection
from rollout.adapter import adapter_checksum, deserialise_adapter, serialise_adapter
from rollout.policy import load_policy
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline"))


def full(folder, dtype="float32", **options):
    model = ModelSection(pretrained=str(folder), trainable="full", dtype=dtype)
    return load_policy(model, NoiseSection(), "cpu", seed=1, **options)


def nudge(policy):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def predict(policy):
    x = torch.randn((2, *policy.latent_shape), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return policy.predict(x, torch.tensor([951, 1]), policy.encode(["a", "bb"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_weights_are_trained_in_float32_and_the_reference_stays(folder, dtype):
    policy = full(folder, dtype)
    names = [name for name, _ in policy.trainable_parameters()]
    assert names == sorted(dict(policy.network.named_parameters()))
    assert {p.dtype for _, p in policy.trainable_parameters()} == {torch.float32}
    assert all(p.requires_grad for _, p in policy.trainable_parameters())
    start = predict(policy)
    with policy.reference():
        assert torch.equal(predict(policy), start), "bit for bit, so that the first ratio is 1"
    nudge(policy)
    assert (predict(policy) - start).abs().max() > 0.01
    with policy.reference():
        assert torch.equal(predict(policy), start)
    if dtype == "bfloat16":
        assert (start - predict(full(folder))).abs().max() > 1e-4, "it computes in bfloat16"


def test_a_float32_checkpoint_is_not_rounded_to_the_compute_dtype(folder):
    kept = full(folder, "bfloat16").adapter_state()
    assert all(torch.equal(kept[name], value) for name, value in full(folder).adapter_state().items())


def test_weights_travel_as_bytes_into_the_same_tensors_and_leave_the_reference(folder):
    trained, worker = full(folder), full(folder)
    nudge(trained)
    start, state = predict(worker), trained.adapter_state()
    places = [parameter.data_ptr() for _, parameter in worker.trainable_parameters()]
    worker.load_adapter(deserialise_adapter(serialise_adapter(state)), adapter_checksum(state))
    assert places == [parameter.data_ptr() for _, parameter in worker.trainable_parameters()]
    assert torch.equal(predict(worker), predict(trained))
    with worker.reference():
        assert torch.equal(predict(worker), start)


def test_an_adapter_is_refused_by_a_network_that_is_trained_whole(folder):
    adapter = load_policy(ModelSection(pretrained=str(folder)), NoiseSection(), "cpu", seed=1).adapter_state()
    with pytest.raises(ValueError, match=r"network of another model: \d+ names differ"):
        full(folder).load_adapter(adapter, adapter_checksum(adapter))


def test_without_a_reference_there_is_one_network(folder):
    policy = full(folder, reference=False)
    with pytest.raises(RuntimeError, match="loaded without a reference"), policy.reference():
        pass
