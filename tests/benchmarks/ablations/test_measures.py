"""What the cells are measured and counted by."""

from __future__ import annotations

import math

import pytest
import torch

from configs.load import load_config
from reward.step_aware import WEIGHTS
from reward.step_aware_scorer import StepAwareScorer
from rollout.decoder import load_decoder
from rollout.policy import load_policy
from tests.benchmarks.ablations import pictures
from tests.benchmarks.ablations.cells import SPM, Shown
from tests.benchmarks.ablations.meter import Meter
from tests.benchmarks.ablations.scorers import without_time


def test_a_wave_s_power_lies_at_its_frequency_and_counts_as_detail_above_a_quarter():
    for cycles, bin_of_it, detailed in ((8, 8, False), (24, 24, True)):
        wave = 0.5 * torch.sin(2 * math.pi * cycles * torch.arange(64) / 64).expand(1, 3, 64, 64)
        power = pictures.spectrum(wave)
        assert int(power.argmax()) == bin_of_it
        share = pictures.high_energy(power) / float((power * torch.arange(32)).sum())
        assert share == pytest.approx(float(detailed), abs=0.05)


def test_crisp_renders_have_no_flaws_and_other_captions_are_flaws():
    shown = Shown(captions=4, on_the_way=3)
    renders, captions = pictures.crisp_renders(shown), pictures.captions(shown)
    assert len(captions) == 8 and captions[0] == captions[3] != captions[1], (
        "three captions twice, the fourth after them"
    )
    assert captions[6] == captions[7] and captions[:6] == pictures.captions(Shown(captions=3, on_the_way=3))
    found = pictures.flaw_measure(renders, captions)
    assert found["flaws/content"].sum() == 0 and found["flaws/unexplained"].max() < 0.01
    moved = pictures.flaw_measure(renders[:3], [*captions[1:3], captions[0]])
    assert moved["flaws/content"].sum() == 3


def test_without_time_a_scorer_reads_every_picture_as_a_clean_one():
    shown = Shown(captions=2, on_the_way=2)
    images, captions = pictures.crisp_renders(shown), pictures.captions(shown)
    late, clean = torch.full((4,), 500), torch.zeros(4, dtype=torch.int64)
    step_aware = StepAwareScorer.from_pretrained(SPM, SPM / WEIGHTS)
    assert torch.equal(without_time().score(images, captions, late), step_aware.score(images, captions, clean))
    assert not torch.allclose(step_aware.score(images, captions, late), step_aware.score(images, captions, clean))


def test_the_meter_counts_rows_of_network_and_decoder_with_and_without_gradients():
    config = load_config("quickstart")
    policy = load_policy(config.model, config.noise, "cpu", seed=0)
    x, t = torch.randn(2, *policy.latent_shape), torch.tensor([501, 501])
    conditioning = policy.encode(["a small red circle in the centre on a white background"] * 2)
    with Meter() as meter:
        with torch.no_grad():
            policy.predict(x, t, conditioning)
            policy.decode(x)
            with meter.paused():
                policy.decode(x)
        policy.predict(x, t, conditioning, guidance=1.0)
        load_decoder(config.model, torch.device("cpu")).decode(x.requires_grad_(True))
    policy.decode(x)
    assert meter.counts == {"network": 4, "network_trained": 2, "decoded": 2, "decoded_trained": 2}, "guidance: twice"
    assert meter.evaluations == 4 + 2 * 2 + 2 + 2 * 2
