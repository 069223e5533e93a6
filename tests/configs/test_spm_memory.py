"""What `train_spm --dry-run` states of memory: the formula by hand, and its constants against what is counted."""

import pytest

from configs.load import load_as
from configs.spm import SpmConfig
from configs.spm_memory import SCORED_PICTURE, render_spm_memory, spm_activations, spm_weights
from learner import train_spm
from tests.benchmarks.activation_memory import scorer_bytes


def config(name, *overrides):
    return load_as(SpmConfig, name, overrides)


def test_a_rank_by_hand():
    """SD-1.5: (859.52 + 83.65 + 123.06) x 2, 1306.16 x 4 x (1 + 4 / 4); 32 pictures of 512^2 are decoded at once."""
    sd = config("sd15_spm")
    assert spm_weights(sd) == pytest.approx(12.582e9, rel=1e-3)
    assert spm_activations(sd) == pytest.approx(32 * 512**2 * 1536.1, rel=1e-3)
    plain = config("sd15_spm", "scorer.gradient_checkpointing=false")
    assert spm_activations(plain) == pytest.approx(32 * 0.628e9 + 2.612e9, rel=1e-3)
    guided = config("sd15_spm", "base.image_size=64", "scorer.autocast=none")
    assert spm_activations(guided) == pytest.approx(32 * 0.167e9, rel=1e-3)
    alone = config("sd15_spm", "training.ranks=1", "training.engine.zero_stage=0")
    assert spm_weights(alone) == pytest.approx(2.132e9 + 4 * 5.2246e9, rel=1e-3)
    sdxl = config("sdxl_spm")
    assert spm_weights(sdxl) == pytest.approx(6.938e9 + 3 * 5.2246e9, rel=1e-3), "labels come from a third copy"


@pytest.mark.parametrize("name", ["sd15_spm", "sdxl_spm"])
def test_the_presets_say_it_and_fit_their_card_of_80_gb(name, capsys):
    assert spm_weights(config(name)) + spm_activations(config(name)) < 80e9
    assert train_spm.main(["--config", name, "--dry-run"]) == 0
    assert "GB of weights and optimiser state, up to 12.9 GB of activations on top" in capsys.readouterr().out


def test_the_miniature_asks_for_nothing():
    assert "no GPU" in render_spm_memory(SpmConfig())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("autocast", SCORED_PICTURE)
def test_the_bytes_of_a_picture_are_as_counted(autocast):
    precision, checkpointed = autocast
    one, three = (scorer_bytes(rows, autocast=precision == "bfloat16", checkpointed=checkpointed) for rows in (1, 3))
    assert (three - one) / 2 == pytest.approx(SCORED_PICTURE[autocast], rel=0.02)
