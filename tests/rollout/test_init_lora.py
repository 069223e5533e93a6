"""A run that starts where another one ended: sft -> spo, as an adapter and merged into the base."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from learner.export import export_lora, trained_shapes
from rollout.conditioning import Conditioning
from rollout.init_lora import FILE_NAME, check_init_lora, read_lora
from rollout.policy import load_policy
from tests.learner.inprocess import Mailbox as RealMailbox
from tests.learner.inprocess import Rollout, Telemetry, single_process_group, small_config
from tests.tiny import MAX_TOKENS, tiny_pipeline

LORA = {"rank": 3, "alpha": 6.0, "target_modules": ["to_q", "to_out.0", "conv1"]}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A finished run's directory: its LoRA is made of a trained-looking adapter with alpha / rank = 2."""
    folder = tmp_path_factory.mktemp("consecutive")
    single_process_group(folder)
    config = config_with(tiny_pipeline(folder / "pipeline"), folder / "sft")
    policy = load_policy(config.model, config.noise, "cpu", seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    state = policy.adapter_state()
    export_lora(state, config, steps=1, before={"reward": 0.0}, after={"reward": 1.0})
    return config, policy


def config_with(pipeline, run_dir, **model):
    config = small_config(pipeline, run_dir, updates_per_batch=1, max_batches=1)
    data = config.model_dump(mode="json")
    data["model"] |= {"lora": LORA, **model}
    return type(config).model_validate(data)


def outputs(policy):
    generator = torch.Generator().manual_seed(9)
    x = torch.randn((2, *policy.latent_shape), generator=generator)
    names = ("prompt_embeds", "negative_prompt_embeds")
    conditioning = Conditioning({name: torch.randn((2, MAX_TOKENS, 32), generator=generator) for name in names})
    with torch.no_grad():
        own = policy.predict(x, torch.tensor([601, 1]), conditioning)
        with policy.reference():
            return own, policy.predict(x, torch.tensor([601, 1]), conditioning)


@pytest.mark.parametrize("named", ["run directory", "folder", "file"])
def test_the_adapter_starts_where_the_lora_ended(first_run, named):
    config, first = first_run
    run_dir = config.run.path
    path = {"run directory": run_dir, "folder": run_dir / "lora", "file": run_dir / "lora" / FILE_NAME}[named]
    second = load_policy(config.model.model_copy(update={"init_lora": str(path)}), config.noise, "cpu", seed=2)
    for name, tensor in first.adapter_state().items():
        torch.testing.assert_close(second.adapter_state()[name], tensor, rtol=1e-6, atol=1e-8)
    for mine, theirs in zip(outputs(second), outputs(first), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_merged_the_lora_is_the_base_and_the_reference(first_run, trainable):
    config, first = first_run
    update = {"init_lora": str(config.run.path), "init_lora_mode": "merged", "trainable": trainable}
    second = load_policy(config.model.model_copy(update=update), config.noise, "cpu", seed=2)
    own, reference = outputs(second)
    trained, original = outputs(first)
    assert torch.equal(own, reference), "nothing is trained yet"
    torch.testing.assert_close(own, trained, rtol=1e-4, atol=1e-4)
    assert (own - original).abs().max() > 0.01


def test_the_loras_of_consecutive_runs_add_up_in_stock_diffusers(first_run, tmp_path):
    """What a merged run exports comes on top of the first LoRA."""
    config, _ = first_run
    model = config.model.model_copy(update={"init_lora": str(config.run.path), "init_lora_mode": "merged"})
    second = load_policy(model, config.noise, "cpu", seed=2)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for _, parameter in second.trainable_parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    run = config.run.model_copy(update={"dir": tmp_path})
    ends = {"before": {"reward": 0.0}, "after": {"reward": 1.0}}
    on_top = export_lora(
        second.adapter_state(), config.model_copy(update={"run": run, "model": model}), steps=1, **ends
    )
    pipeline = StableDiffusionPipeline.from_pretrained(config.model.pretrained, safety_checker=None)
    pipeline.load_lora_weights(str(config.run.path / "lora"), adapter_name="first")
    pipeline.load_lora_weights(str(on_top.folder), adapter_name="second")
    pipeline.set_adapters(["first", "second"])
    x, text = (torch.randn(shape, generator=generator) for shape in ((2, *second.latent_shape), (2, MAX_TOKENS, 32)))
    t = torch.tensor([601, 1])
    with torch.no_grad():
        theirs = pipeline.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
        ours = second.predict(x, t, Conditioning({"prompt_embeds": text}), guidance=1.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_merged_takes_another_rank_and_other_layers(first_run):
    config, first = first_run
    lora = config.model.lora.model_copy(update={"rank": 2, "target_modules": ["to_v"]})
    update = {"init_lora": str(config.run.path), "init_lora_mode": "merged", "lora": lora}
    second = load_policy(config.model.model_copy(update=update), config.noise, "cpu", seed=2)
    torch.testing.assert_close(outputs(second)[0], outputs(first)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["adapter", "merged"])
def test_sft_then_spo(first_run, tmp_path, mode):
    """The second run publishes the first one's end as its start, samples with it, and trains on."""
    from learner.loop import train

    sft, _ = first_run
    model = {"init_lora": str(sft.run.path), "init_lora_mode": mode}
    config = config_with(sft.model.pretrained, tmp_path, **model)
    mailbox, telemetry = RealMailbox(config.run.path / "adapters"), Telemetry()
    result = train(0, 1, config, Rollout(config, mailbox), mailbox, telemetry, device=torch.device("cpu"))
    assert result.finished and mailbox.published[0].sha256 != mailbox.published[1].sha256
    at_start = telemetry.lines[1]["ratio/win_mean"]
    if mode == "merged":
        assert at_start == pytest.approx(1, abs=1e-6), "the reference is where the first run ended"
    else:
        assert at_start != pytest.approx(1, abs=1e-4), "the reference is the base"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, r"lora_A.weight has shape .* Set model.lora.rank as in the run that exported it"),
        ({"target_modules": ["to_v"]}, r"tensors differ from this adapter's, first .* Set model.lora.target_modules"),
    ],
)
def test_another_shape_of_adapter_is_refused_with_the_fix(first_run, change, message):
    config, _ = first_run
    lora = config.model.lora.model_copy(update=change)
    model = config.model.model_copy(update={"init_lora": str(config.run.path), "lora": lora})
    with pytest.raises(ValueError, match=message):
        load_policy(model, config.noise, "cpu", seed=2)
    with pytest.raises(ValueError, match=message):  # what a run looks at before it starts anything
        check_init_lora(model, trained_shapes(model))
    merged = model.model_copy(update={"init_lora_mode": "merged"})
    check_init_lora(merged, trained_shapes(merged))


def test_bad_files_are_refused_by_name(first_run, tmp_path):
    good = load_file(first_run[0].run.path / "lora" / FILE_NAME)
    name = next(iter(good))
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    idle = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in good.items()}
    save_file(idle, tmp_path / "idle.safetensors")
    save_file({name: good[name] * torch.nan}, tmp_path / "nan.safetensors")
    save_file({"text_encoder.q": good[name]}, tmp_path / "foreign.safetensors")
    for path, message in (
        ("absent", "no LoRA there"),
        ("damaged.safetensors", "cannot be read as safetensors"),
        ("nan.safetensors", "has non-finite values"),
        ("foreign.safetensors", "is not a tensor of a LoRA"),
        ("idle.safetensors", r"idle\.safetensors changes nothing: every lora_B in it is zero"),
    ):
        with pytest.raises(ValueError, match=message):
            read_lora(str(tmp_path / path))
