"""The sizes behind `--dry-run`, counted on networks of the published configuration without their weights."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from configs import AtelierConfig, build_config, load_config, preset_names
from configs.activations import expected_activations
from configs.memory import CLIP_BIG_G, CLIP_L, SIZES, STEP_AWARE_VIT_H, T5_XXL, expected_memory, render_memory
from configs.model import LoraSection
from configs.pixel_memory import DECODER
from reward.step_aware import StepAwarePreferenceModel
from rollout.trainable import inject_lora
from tests.benchmarks.published import NETWORKS


def millions(module, only=""):
    return sum(p.numel() for name, p in module.named_parameters() if only in name) / 1e6


@pytest.mark.parametrize("family", NETWORKS)
def test_networks_and_adapters_have_the_stated_size(family):
    network_class, settings = NETWORKS[family]
    with torch.device("meta"):
        network = network_class(**settings)
        found = millions(network)
        inject_lora(network, LoraSection(rank=1))
    assert SIZES[family].network == pytest.approx(found, rel=2e-3)
    assert SIZES[family].adapter_per_rank == pytest.approx(millions(network, ".lora_"), rel=2e-3)


def test_the_other_parts_have_the_stated_size():
    with torch.device("meta"):
        clip = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        big = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
        assert millions(CLIPTextModel(CLIPTextConfig(**clip))) == pytest.approx(CLIP_L, rel=1e-3)
        text = CLIPTextModelWithProjection(CLIPTextConfig(**big, projection_dim=1280))
        assert millions(text) == pytest.approx(CLIP_BIG_G, rel=1e-3)
        t5 = T5Config(
            vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        assert millions(T5EncoderModel(t5)) == pytest.approx(T5_XXL, rel=1e-3)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision = {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "patch_size": 14,
        }  # fmt: skip
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024))
        assert millions(StepAwarePreferenceModel(clip)) == pytest.approx(STEP_AWARE_VIT_H, rel=1e-3)
        assert millions(vae) == pytest.approx(SIZES["sdxl"].autoencoder, rel=1e-3)


def test_a_worker_and_a_learner_by_hand():
    """SDXL in bfloat16, rank 64: (2567.46 + 83.65 + 817.72) x 2 + 92.9 x 4 + 1306 x 4, and 2567.46 x 2 + 92.9 x 16."""
    model = {"family": "sdxl", "pretrained": "checkpoint", "dtype": "bfloat16", "lora": {"rank": 64}}
    config = build_config({"model": model, "evaluation": {"measures": []}})
    memory = expected_memory(config)
    assert memory["rollout worker"] == pytest.approx(12.534e9, rel=1e-3)
    assert memory["learner rank"] == pytest.approx(6.621e9, rel=1e-3)
    assert "learner rank: 6.6 GB" in render_memory(config)
    without = build_config({"model": {**model, "family": "sd3", "t5": False}, "evaluation": {"measures": []}})
    with_t5 = build_config({"model": {**model, "family": "sd3"}, "evaluation": {"measures": []}})
    saved = expected_memory(with_t5)["rollout worker"] - expected_memory(without)["rollout worker"]
    assert saved == pytest.approx(9.52e9, rel=1e-3)


PIXEL_PRESETS = ("sd15_pixel_sft", "pixart_pixel_simpo", "sdxl_pixel_simpo")
DOCUMENT = Path(__file__).parents[2] / "docs" / "objectives.md"


def test_a_learner_with_a_pixel_term_by_hand():
    """SD-1.5 on captioned pictures of 512: network 859.52 x 2, adapter 0.1993 x 16 x 16, autoencoder and text encoder
    (83.65 + 123.06) x 2, decoder 49.49 x 4, and 512^2 x (3,112 x 4 + 4 pictures x 24) = 3288 MB."""
    memory = expected_memory(load_config("sd15_pixel_sft"))
    assert memory.keys() == {"learner rank", "evaluator"}, "nothing rolls out"
    assert memory["learner rank"] == pytest.approx((1719 + 51 + 413.4 + 198 + 3288.3) * 1e6, rel=1e-3)


def test_the_decoder_has_the_stated_size():
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    assert millions(vae.decoder) + millions(vae.post_quant_conv) == pytest.approx(DECODER, rel=1e-3)


def test_the_documented_figures_of_each_preset_are_the_formula_s():
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) GB \|$", DOCUMENT.read_text(), re.M
    )
    assert [name for name, *_ in rows] == list(PIXEL_PRESETS)
    for name, *shown in rows:
        sides = (512, 1024, load_config(name).model.image_size)
        found = [expected_memory(load_config(name, [f"model.image_size={side}"]))["learner rank"] for side in sides]
        assert [float(text) for text in shown] == [pytest.approx(value / 1e9, abs=0.051) for value in found], name


FULL = {"family": "sd", "pretrained": "checkpoint", "dtype": "bfloat16", "trainable": "full"}


@pytest.mark.parametrize(
    ("learner", "weights"),
    [  # how often the 859.52 million float32 weights are on a rank's device
        ({"engine": {"zero_stage": 0}}, 4),
        ({"engine": {"zero_stage": 1}}, 2 + 3 / 2),
        ({"engine": {"zero_stage": 2}}, 1 + 4 / 2),
        ({"engine": {"zero_stage": 3}}, 5 / 2),
        ({"engine": {"zero_stage": 2}, "reference_at": "learner"}, 1 + 4 / 2 + 1),
        ({"engine": {"zero_stage": 2, "offload": "cpu"}, "resources": {"gpus": 1.0}}, 1),
        ({"engine": {"zero_stage": 3, "offload": "cpu"}, "resources": {"gpus": 1.0}}, 0),
    ],
)
def test_a_whole_network_by_hand(learner, weights):
    config = build_config({"model": FULL, "learner": {"ranks": 2, **learner}, "evaluation": {"measures": []}})
    memory = expected_memory(config)
    assert memory["learner rank"] == pytest.approx(859.52e6 * 4 * weights)
    others = (83.65 + 123.06) * 2e6 + 1306.16 * 4e6
    copies = 1 if "reference_at" in learner else 2
    assert memory["rollout worker"] == pytest.approx(859.52e6 * 4 * copies + others)
    assert memory["evaluator"] == pytest.approx(859.52e6 * 4 * 2 + others)
    assert "passes 3.4 GB through Ray's object store" in render_memory(config)


def test_the_miniature_asks_for_nothing():
    assert expected_memory(AtelierConfig()) == {} and "no GPU" in render_memory(load_config("quickstart"))


@pytest.mark.parametrize("name", [name for name in preset_names() if expected_memory(load_config(name))])
def test_what_a_preset_states_fits_the_cards_it_is_for(name):
    """A role's weights and activations within its share of a card of 80 GB; on one of 24 GB all that lie on it."""
    config = load_config(name)
    weights, more = expected_memory(config), expected_activations(config, 2)
    shares = {"rollout worker": config.rollout.workers, "learner rank": config.learner, "evaluator": config.evaluation}
    needed = {role: weights[role] + more[role] for role in weights if shares[role].resources.gpus > 0}
    assert needed
    if name.endswith("_1gpu"):
        assert sum(needed.values()) < 24e9, needed
    else:
        assert all(amount < shares[role].resources.gpus * 80e9 for role, amount in needed.items()), needed
