"""The policy over a real small pipeline: guidance, reference, adapter, decoding."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from configs.model import LoraSection, ModelSection, NoiseSection
from rollout.adapter import adapter_checksum, deserialise_adapter, serialise_adapter
from rollout.policy import load_policy
from rollout.sampling import sample_images
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def policy(folder):
    return load_policy(ModelSection(pretrained=str(folder)), NoiseSection(), "cpu", seed=1)


def randomise(policy, scale=0.05):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def inputs(policy, rows=3):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn((rows, *policy.latent_shape), generator=generator)
    return x, torch.tensor([951, 501, 1][:rows]), policy.encode(["a", "bb", "ccc"][:rows])


def test_plain_sampling_equals_the_stock_pipeline(folder):
    """Same latents and variance noise: our 20 steps and diffusers' own pipeline give the same picture."""
    policy = load_policy(ModelSection(pretrained=str(folder)), NoiseSection(), "cpu", seed=1)
    ours = sample_images(policy, ["a red circle"], [11])
    generator = torch.Generator().manual_seed(11)
    start = torch.randn((1, 4, 8, 8), generator=generator)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a red circle", latents=start, generator=[generator], eta=1.0, num_inference_steps=20, guidance_scale=5.0,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=1e-3, atol=1e-3)


def test_guidance_is_the_formula(policy):
    x, t, conditioning = inputs(policy)
    with torch.no_grad():
        embeds, negative = (conditioning.tensors[n] for n in ("prompt_embeds", "negative_prompt_embeds"))
        conditional = policy.network(x, t, encoder_hidden_states=embeds).sample
        unconditional = policy.network(x, t, encoder_hidden_states=negative).sample
        expected = unconditional + 5.0 * (conditional - unconditional)
        torch.testing.assert_close(policy.predict(x, t, conditioning), expected, rtol=1e-4, atol=1e-5)


def test_splitting_a_batch_changes_nothing(policy):
    x, t, conditioning = inputs(policy)
    with torch.no_grad():
        whole, pixels = policy.predict(x, t, conditioning), policy.decode(x)
        policy.max_batch = 2
        torch.testing.assert_close(policy.predict(x, t, conditioning), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(policy.decode(x), pixels, rtol=1e-4, atol=1e-5)


def test_the_reference_is_the_base(policy, folder):
    base = load_policy(ModelSection(pretrained=str(folder)), NoiseSection(), "cpu", seed=99)
    x, t, conditioning = inputs(policy)
    with torch.no_grad():
        expected = base.predict(x, t, conditioning)
        assert torch.equal(policy.predict(x, t, conditioning), expected), "a fresh adapter changes nothing"
        randomise(policy)
        assert not torch.allclose(policy.predict(x, t, conditioning), expected, atol=1e-4)
        with policy.reference():
            assert torch.equal(policy.predict(x, t, conditioning), expected)
        assert not torch.allclose(policy.predict(x, t, conditioning), expected, atol=1e-4)
    assert all(parameter.requires_grad for _, parameter in policy.trainable_parameters())


def test_every_process_starts_from_the_same_adapter(folder):
    first, second = (load_policy(ModelSection(pretrained=str(folder)), NoiseSection(), "cpu", seed=3) for _ in range(2))
    assert adapter_checksum(first.adapter_state()) == adapter_checksum(second.adapter_state())
    assert sum(parameter.requires_grad for parameter in first.network.parameters()) == len(first.trainable_parameters())


def test_adapter_travels_as_bytes_and_lands_in_the_same_tensors(policy, folder):
    other = load_policy(ModelSection(pretrained=str(folder)), NoiseSection(), "cpu", seed=4)
    randomise(policy)
    state = policy.adapter_state()
    places = [parameter.data_ptr() for _, parameter in other.trainable_parameters()]
    other.load_adapter(deserialise_adapter(serialise_adapter(state)), adapter_checksum(state))
    assert places == [parameter.data_ptr() for _, parameter in other.trainable_parameters()]
    assert adapter_checksum(other.adapter_state()) == adapter_checksum(state)


def test_foreign_and_damaged_adapters_are_refused_and_change_nothing(policy, folder):
    before = adapter_checksum(policy.adapter_state())
    state = {name: value + 1 for name, value in policy.adapter_state().items()}
    good = adapter_checksum(state)
    wide = load_policy(
        ModelSection(pretrained=str(folder), lora=LoraSection(rank=8)), NoiseSection(), "cpu", seed=4
    ).adapter_state()
    with pytest.raises(ValueError, match=r"has shape .*this model needs"):
        policy.load_adapter(wide, adapter_checksum(wide))
    with pytest.raises(ValueError, match="1 names differ"):
        policy.load_adapter(dict(list(state.items())[1:]), good)
    with pytest.raises(ValueError, match=r"checksum .* are not the published"):
        policy.load_adapter({**state, next(iter(state)): next(iter(state.values())) + 1}, good)
    with pytest.raises(ValueError, match="no published weights"):
        deserialise_adapter(serialise_adapter(state)[:-3])
    assert adapter_checksum(policy.adapter_state()) == before


def test_bfloat16_base_keeps_a_float32_adapter(folder):
    policy = load_policy(ModelSection(pretrained=str(folder), dtype="bfloat16"), NoiseSection(), "cpu", seed=1)
    assert policy.network.dtype == torch.bfloat16
    assert {parameter.dtype for _, parameter in policy.trainable_parameters()} == {torch.float32}
    x, t, conditioning = inputs(policy)
    with torch.no_grad():
        assert policy.predict(x, t, conditioning).dtype == torch.float32


def test_latents_of_pictures_come_back(policy):
    images = torch.zeros(2, 3, 32, 32)
    assert policy.encode_images(images).shape == (2, *policy.latent_shape)
    assert policy.decode(torch.zeros(2, *policy.latent_shape)).abs().max() <= 1


def test_a_target_that_no_layer_has_is_named(folder):
    with pytest.raises(ValueError, match="nonsense"):
        load_policy(
            ModelSection(pretrained=str(folder), lora=LoraSection(target_modules=["nonsense"])), NoiseSection(), "cpu",
            seed=1,
        )  # fmt: skip


def test_a_learner_loads_the_network_alone(folder):
    policy = load_policy(ModelSection(pretrained=str(folder)), NoiseSection(), "cpu", seed=1, network_only=True)
    with pytest.raises(RuntimeError, match="network_only"):
        policy.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(RuntimeError, match="network_only"):
        policy.encode(["a"])
