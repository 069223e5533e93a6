"""Every preset of the objectives trains a small checkpoint in its family's real layout; only sizes are overridden."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass

import pytest
import torch

from configs.cautions import cautions
from configs.data import OnlineData
from configs.load import PRESET_DIR, load_config
from configs.objectives import pixel_of
from learner.datasets.books import DataBooks
from learner.datasets.offline import ModelEncoder, OfflineQueue
from learner.export import export_lora
from learner.loop import train
from reward import build_scorer
from rollout.adapter import deserialise_adapter
from rollout.init_lora import FILE_NAME
from tests.learner.command import tiny_clip
from tests.learner.inprocess import PROMPTS, Mailbox, Rollout, Telemetry, single_process_group
from tests.learner.offline.sets import write_set
from tests.tiny_families import tiny_family


@dataclass(frozen=True)
class Preset:
    """What is known of a preset beforehand."""

    family: str
    kind: str | None = None
    """Of its data set; None where it rolls out."""
    sizes: tuple[str, ...] = ()
    first_loss: float | None = None
    """Before the first update, where the method fixes it."""


PRESETS = {
    "sd15_dpo": Preset("sd", "pairs", ("learner.optimizer.warmup_steps=1",), first_loss=math.log(2)),
    "sdxl_mapo": Preset("sdxl", "pairs"),
    "sd15_pixel_sft": Preset("sd", "images"),
    "sd15_ddpo": Preset("sd", None, ("rollout.sampler.num_trajectories=3",)),
    "sd15_d3po": Preset("sd", None, ("rollout.workers.chunk_groups=2",), first_loss=math.log(2)),
    "pixart_pixel_simpo": Preset("pixart", None, ("rollout.sampler.num_images=3",)),
    "sdxl_pixel_simpo": Preset("sdxl", None, ("rollout.sampler.num_images=3",)),
}
SIZES = (
    "model.image_size=32", "noise.num_steps=5", "learner.ranks=1", "learner.groups_per_batch=2",
    "learner.micro_batch_pairs=2", "learner.max_batches=2", "learner.updates_per_batch=1", "checkpoint.every_batches=2",
    "queue.capacity_groups=4", "evaluation.num_prompts=2", "evaluation.grid_size=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """A small checkpoint of each family, a CLIP, prompts, and a data set of each kind."""
    folder = tmp_path_factory.mktemp("presets")
    single_process_group(folder)
    for family in ("sd", "sdxl", "pixart"):
        tiny_family(family, folder / family)
    tiny_clip(folder / "clip")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    for kind in ("pairs", "images"):
        write_set(folder / kind, kind, "parquet", 4)
    return folder


def preset_config(name, assets, run_dir):
    preset = PRESETS[name]
    places = [f"run.dir={run_dir}", f"model.pretrained={assets / preset.family}", *SIZES, *preset.sizes]
    if load_config(name).model.vae is not None:
        places.append(f"model.vae={assets / preset.family / 'vae'}")
    places.append(f"rollout.scorer.clip={assets / 'clip'}")
    source = f"prompts.source={assets / 'prompts.txt'}" if preset.kind is None else f"data.path={assets / preset.kind}"
    return load_config(name, [*places, source])


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_preset_says_where_it_is_from(name):
    """The kinds of section apart, which the preset's name says; and nothing in it is hardly meant."""
    lines = (PRESET_DIR / f"{name}.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r" +\w+: ?[^ #]", line)]
    assert len(values) > 20
    bare = [
        line for line in values if "  # " not in line and line.split(":")[0].strip() not in ("name", "type", "family")
    ]
    assert not bare
    assert cautions(load_config(name)) == []


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_a_small_checkpoint(assets, tmp_path, name):
    preset, config = PRESETS[name], preset_config(name, assets, tmp_path)
    mailbox, telemetry, cpu = Mailbox(tmp_path / "adapters"), Telemetry(), torch.device("cpu")
    if isinstance(config.data, OnlineData):
        queue = Rollout(config, mailbox, build_scorer)
    else:
        queue = OfflineQueue(config, DataBooks(tmp_path, 2), ModelEncoder(config, cpu))
    result = train(0, 1, config, queue, mailbox, telemetry, device=cpu)

    assert result.finished and result.counters.step == 2 and result.counters.skipped_updates == 0
    assert len({version.sha256 for version in mailbox.published}) == 3, "every batch changed the weights"
    lines = [telemetry.lines[step] for step in (1, 2)]
    for line in lines:
        assert math.isfinite(line["loss/total"]) and line["loss/grad_norm"] > 0 and line["pairs/trained"] > 0
        assert ("loss/pixel" in line) == (pixel_of(config.learner.objective) is not None)
    if preset.first_loss is not None:
        assert lines[0]["loss/total"] == pytest.approx(preset.first_loss, abs=5e-3)
    assert queue.stats()["trained"] == 4
    _, (published,) = asyncio.run(mailbox.actor.latest())
    files = export_lora(deserialise_adapter(published), config, steps=2, before={"reward": 0.0}, after={"reward": 0.0})
    assert (files.folder / FILE_NAME).stat().st_size > 0
