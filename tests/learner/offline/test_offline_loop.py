"""The loop on a data set: real readers, encoders, engine and checkpoints, without Ray."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from configs.schema import AtelierConfig
from learner.committed import CheckpointError, find_checkpoint, list_committed
from learner.datasets.books import DataBooks
from learner.datasets.offline import ModelEncoder, OfflineQueue, open_offline_queue
from learner.datasets.rows import DataError
from learner.loop import train
from rollout.assets import pipeline_path
from rollout.final_records import FinalGroup
from rollout.policy import load_policy
from tests.learner.inprocess import Mailbox, Telemetry, single_process_group
from tests.learner.offline.sets import write_set
from tests.learner.ranks import run_ranks
from tests.learner.test_loop import assert_checkpoints_equal
from tests.tiny import tiny_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline-loop")
    single_process_group(folder)
    return tiny_pipeline(folder / "pipeline")


def offline_config(pipeline, run_dir, kind, path, *, objective=None, learner=None, **data):
    return AtelierConfig.model_validate(
        {
            "run": {"name": "offline", "dir": str(run_dir)},
            "model": {"pretrained": str(pipeline)},
            "noise": {"num_steps": 5, "guidance_scale": 2.0},
            "data": {"type": kind, "path": str(path), **data},
            "learner": {
                "objective": objective or {"type": "sft" if kind == "images" else "dpo"},
                "optimizer": {"lr": 1e-3},
                "groups_per_batch": 4,
                "micro_batch_pairs": 2,
                "max_batches": 4,
                **(learner or {}),
            },
            "checkpoint": {"every_batches": 2},
        }
    )


class Run:
    """A run directory; `again` is a new process after a crash."""

    def __init__(self, config, telemetry=None):
        self.config = config
        self.telemetry = telemetry or Telemetry()
        config.run.path.mkdir(parents=True, exist_ok=True)
        self.mailbox = Mailbox(config.run.path / "adapters")
        self.books = DataBooks(config.run.path, config.learner.groups_per_batch)
        self.queue = OfflineQueue(config, self.books, ModelEncoder(config, CPU))

    def train(self, rank=0, world=1, **more):
        return train(rank, world, self.config, self.queue, self.mailbox, self.telemetry, device=CPU, **more)

    def again(self):
        return Run(self.config, self.telemetry)

    def adapter_sha256(self):
        return self.mailbox.actor.version.sha256

    def losses(self):
        return {step: {t: v for t, v in line.items() if t.startswith(("loss/", "pairs/"))}
                for step, line in self.telemetry.lines.items()}  # fmt: skip


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["pairs", "images"])
def test_n_batches_kill_resume_n_equals_2n(pipeline, tmp_path, kind):
    path = write_set(tmp_path / "set", kind, "webdataset", 6)
    whole = Run(offline_config(pipeline, tmp_path / "whole", kind, path))
    assert whole.train().finished

    first = Run(offline_config(pipeline, tmp_path / "parts", kind, path))
    take = first.queue.take

    def killed_at_three(batch, *args):
        if batch == 3:
            raise Killed
        return take(batch, *args)

    first.queue.take = killed_at_three
    with pytest.raises(Killed):
        first.train()
    torch.manual_seed(12345)  # a new process's generators are somewhere else
    second = first.again()
    assert second.train(resume_from=find_checkpoint("auto", tmp_path / "parts")).finished
    assert second.adapter_sha256() == whole.adapter_sha256()
    assert second.losses() == whole.losses() and sorted(whole.losses()) == [1, 2, 3, 4]
    assert_checkpoints_equal(list_committed(tmp_path / "parts")[-1], list_committed(tmp_path / "whole")[-1])
    stats = second.queue.stats()
    assert stats["trained"] == stats["produced"] == 16 and stats["epoch_rows"] == 6

    line = whole.telemetry.lines[4]
    assert line["pairs/trained"] == 4 and line["queue/trained"] == 16 and math.isfinite(line["loss/total"])
    assert not any(tag.startswith(("reward/", "weights/")) for tag in line), "a data set has neither"


def test_the_pixel_term_trains_on_a_data_set(pipeline, tmp_path):
    path = write_set(tmp_path / "set", "pairs", "parquet", 4)
    objective = {"type": "simpo", "pixel": {"weight": 2.0}}
    run = Run(offline_config(pipeline, tmp_path / "run", "pairs", path, objective=objective,
                             learner={"max_batches": 1, "groups_per_batch": 2}))  # fmt: skip
    assert run.train().finished and run.telemetry.lines[1]["loss/grad_norm"] > 0


def test_what_is_taken_is_the_pipeline_s_own_encoding(pipeline, tmp_path):
    path = write_set(tmp_path / "set", "images", "folder", 4)
    config = offline_config(pipeline, tmp_path / "run", "images", path)
    run = Run(config)
    policy = load_policy(config.model, config.noise, "cpu", seed=0)
    for payload in run.queue.take(0, 0, 1, 0):
        group = FinalGroup.from_bytes(payload)
        key = group.worker.removesuffix(".*")
        pixels = run.queue._decode(Path(f"{key}.png").read_bytes(), "", "image")
        assert pixels.shape == (3, 32, 32), "64 pixels fitted to the model's 32"
        assert torch.equal(group.z_win, policy.encode_images(pixels[None]))
        expected = policy.encode([group.prompt]).row(0)
        assert all(torch.equal(group.conditioning[name], value) for name, value in expected.items())


def test_another_data_set_or_taste_is_refused_on_resume(pipeline, tmp_path):
    path = write_set(tmp_path / "set", "images", "jsonl", 4)
    config = offline_config(pipeline, tmp_path / "run", "images", path, learner={"max_batches": 1})
    Run(config).train()
    checkpoint = find_checkpoint("auto", tmp_path / "run")
    limited = offline_config(pipeline, tmp_path / "other", "images", path, limit=2)
    with pytest.raises(CheckpointError, match=r"data\.limit is None in the checkpoint and 2 in this run"):
        Run(limited).train(resume_from=checkpoint)
    with path.open("a") as file:
        file.write(path.read_text().splitlines()[0] + "\n")
    longer = offline_config(pipeline, tmp_path / "run", "images", path, learner={"max_batches": 2})
    with pytest.raises(DataError, match="its files are not those"):
        Run(longer).train(resume_from=checkpoint)


def test_a_closed_run_ends_with_a_checkpoint_and_goes_on(pipeline, tmp_path):
    path = write_set(tmp_path / "set", "images", "jsonl", 4)
    run = Run(offline_config(pipeline, tmp_path / "run", "images", path))
    retire = run.queue.retire

    def close_after_the_first(batch):
        retire(batch)
        run.books.close("SIGTERM")

    run.queue.retire = close_after_the_first
    result = run.train()
    assert not result.finished and result.counters.batch == 1
    assert run.again().train(resume_from=find_checkpoint("auto", tmp_path / "run")).finished


def on_two_ranks(rank, world, pipeline, run_dir, path):
    """Losses of a run, by step."""
    run = Run(offline_config(pipeline, run_dir, "pairs", path, learner={"max_batches": 2}))
    run.train(rank, world)
    return {step: line["loss/total"] for step, line in run.telemetry.lines.items()}


def test_two_ranks_train_on_the_same_batches_as_one(pipeline, tmp_path):
    path = write_set(tmp_path / "set", "pairs", "folder", 6)
    folder = tmp_path / "ranks"
    folder.mkdir()
    both, _ = run_ranks(2, folder, on_two_ranks, pipeline, tmp_path / "two", path)
    one = on_two_ranks(0, 1, pipeline, tmp_path / "one", path)
    assert one.keys() == both.keys() == {1, 2}
    assert all(both[step] == pytest.approx(one[step], rel=1e-4) for step in one)


def faults_on_two_ranks(rank, world, pipeline, folder, cases):
    """What a rank hears of each data set, of which every rank has its own copy; `cases`: name -> a path for each."""
    heard = {}
    for name, paths in cases.items():
        config = offline_config(pipeline, folder / name, "pairs", paths[rank], learner={"max_batches": 1})
        try:
            queue = open_offline_queue(config, DataBooks(folder, 4), CPU)
            train(rank, world, config, queue, Mailbox(folder / f"{name}-{rank}"), Telemetry(), device=CPU)
        except DataError as error:
            heard[name] = str(error)
    return heard


def test_all_ranks_hear_at_once_that_one_cannot_use_its_data(pipeline, tmp_path):
    """The others would wait in a collective until its timeout."""
    cases = {}
    for name, form in (("damaged", "parquet"), ("other", "parquet"), ("row", "folder"), ("good", "folder")):
        cases[name] = [write_set(tmp_path / name / copy, "pairs", form, 4) for copy in "01"]
    cases["damaged"][1].write_bytes(b"PAR1")
    write_set(tmp_path / "other" / "1", "pairs", "parquet", 5)
    for path in cases["row"]:  # which only rank 1 reads
        (path / "000002.win.png").write_bytes(b"no picture")
    folder = tmp_path / "ranks"
    folder.mkdir()
    zero, one = run_ranks(2, folder, faults_on_two_ranks, pipeline, folder, cases)
    assert zero.keys() == one.keys() == {"damaged", "other", "row"}
    assert (
        zero["damaged"] == one["damaged"]
        and "1/rows.parquet: cannot be read (truncated, or not a parquet file)" in zero["damaged"]
    )
    assert all(re.search(r"/\d+ finds other files there than .*/\d+; data\.path must", h["other"]) for h in (zero, one))
    assert zero["row"] == one["row"] and "000002.*: picture win cannot be decoded" in zero["row"]


def test_the_bundled_model_reads_the_bundled_world(tmp_path):
    """The miniature's autoencoder gives a rendered picture back."""
    path = write_set(tmp_path / "set", "images", "folder", 2)
    config = offline_config(pipeline_path("miniature"), tmp_path / "run", "images", path)
    encoder = ModelEncoder(config, CPU)
    assert encoder.image_size == 64
    queue = OfflineQueue(config, DataBooks(tmp_path, 4), encoder)
    pixels = queue._decode((path / "000000.png").read_bytes(), "", "image")
    again = load_policy(config.model, config.noise, "cpu", seed=0).decode(encoder.image(pixels)[None])[0]
    assert (again - pixels).abs().mean() < 0.05
