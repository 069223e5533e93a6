"""The activation memory behind `--dry-run`: the formula by hand, and its constants against what is counted."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

from configs import build_config, load_config
from configs.activations import ACTIVATIONS, DECODER_A_PIXEL, expected_activations
from configs.memory import render_memory
from tests.benchmarks.activation_memory import decoder_bytes, encoder_bytes, network_bytes
from tests.benchmarks.live_bytes import LiveBytes


def config(**changes):
    model = {"family": "sdxl", "pretrained": "checkpoint", "dtype": "bfloat16", **changes.pop("model", {})}
    return build_config({"model": model, "evaluation": {"measures": []}, **changes})


def test_a_worker_and_a_learner_by_hand():
    """SDXL, 4 prompts x 4 candidates with guidance: 32 latents; a picture of 512 pixels is a quarter of one of 1024."""
    found = expected_activations(config(learner={"micro_batch_pairs": 3}), 2)
    assert found["rollout worker"] == pytest.approx(max(32 * 0.165e9, 16 * 1024**2 * DECODER_A_PIXEL))
    assert found["learner rank"] == pytest.approx(3 * 2 * 7.843e9)
    smaller = expected_activations(config(learner={"micro_batch_pairs": 3}, model={"image_size": 512}), 2)
    assert smaller["learner rank"] == pytest.approx(found["learner rank"] / 4)
    assert expected_activations(config(learner={"micro_batch_pairs": 3}), 4)["learner rank"] == pytest.approx(
        2 * found["learner rank"]
    )
    kept = expected_activations(config(model={"gradient_checkpointing": True}, learner={"micro_batch_pairs": 3}), 2)
    assert kept["learner rank"] == pytest.approx(3 * 2 * 0.582e9)
    apart = expected_activations(config(rollout={"sampler": {"block_length": 4}}, learner={"micro_batch_pairs": 3}), 2)
    assert apart["learner rank"] == pytest.approx(2 * found["learner rank"]), "two latents a pair"


def test_a_dry_run_states_them():
    assert "GB of activations" in render_memory(load_config("sd15_spo"))


def test_the_decoder_is_as_counted():
    assert decoder_bytes(256) == pytest.approx(256**2 * DECODER_A_PIXEL, rel=0.01)
    assert encoder_bytes(256) < decoder_bytes(256), "encoding is not what a rank's memory is for"


@pytest.mark.slow
def test_latents_add_up_and_pictures_scale():
    one = network_bytes("sd", 1, training=True, checkpointed=True)
    assert one == pytest.approx(ACTIVATIONS["sd"].checkpointed, rel=0.02)
    quarter = network_bytes("sd", 1, training=True, side=32)
    assert quarter == pytest.approx(ACTIVATIONS["sd"].training / 4, rel=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("family", ACTIVATIONS)
def test_every_constant_is_as_counted(family):
    stated = ACTIVATIONS[family]
    assert network_bytes(family, 1, training=False) == pytest.approx(stated.sampling, rel=0.02)
    assert network_bytes(family, 1, training=True) == pytest.approx(stated.training, rel=0.02)
    assert network_bytes(family, 1, training=True, checkpointed=True) == pytest.approx(stated.checkpointed, rel=0.02)


def test_tensors_without_data_count_as_tensors_with_data_do():
    """A small U-Net for real: the same bytes alive, and most of them are what autograd says that it has saved."""
    settings = {
        "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 32,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 4, "attention_head_dim": 2,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    def run():
        network = UNet2DConditionModel(**settings)
        own = {tensor.untyped_storage()._cdata for tensor in network.parameters()}
        given = torch.zeros(2, 4, 16, 16), torch.zeros(2), torch.zeros(2, 5, 32)
        saved.clear()
        with LiveBytes(ignore=list(network.parameters())) as live:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = network(*given, return_dict=False)[0]
            forward = live.now
            output.square().mean().backward()
        return forward, live.peak, sum(size for key, size in saved.items() if key not in own)

    real = run()
    with FakeTensorMode():
        fake = run()
    assert real[:2] == pytest.approx(fake[:2], rel=0.02)
    assert 0.6 * real[0] < real[2] < 1.2 * real[0]
