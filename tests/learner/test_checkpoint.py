"""Checkpoints: what is chosen, what is refused, what a crash leaves, and how many are kept."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import learner.checkpoint
from learner.checkpoint import load_checkpoint, save_checkpoint
from learner.committed import MANIFEST, CheckpointError, Counters, check_checkpoint, find_checkpoint, list_committed
from learner.engine import build_engine
from rollout.policy import load_policy
from tests.learner.disks import make_full, make_read_only, mounts_permitted
from tests.learner.inprocess import single_process_group, small_config
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    single_process_group(folder)
    return tiny_pipeline(folder / "pipeline")


class Parts:
    """Engine and policy of one run, with the calls that tests make."""

    def __init__(self, config):
        self.config = config
        self.policy = load_policy(config.model, config.noise, "cpu", seed=0, network_only=True)
        self.engine = build_engine(self.policy, config.learner)

    def save(self, batch, queue_state=b"queue"):
        parts = {"engine": self.engine, "policy": self.policy, "rank": 0, "queue_state": queue_state}
        return save_checkpoint(self.config.run.path, Counters(batch, 2 * batch), self.config, **parts)

    def load(self, path):
        return load_checkpoint(path, self.config, engine=self.engine, policy=self.policy, rank=0)


@pytest.fixture(scope="module")
def parts(pipeline, tmp_path_factory):
    return Parts(small_config(pipeline, tmp_path_factory.mktemp("unused")))


@pytest.fixture
def here(parts, tmp_path):
    """The module's engine with a run directory of this test's own."""
    former = parts.config
    parts.config = former.model_copy(update={"run": former.run.model_copy(update={"dir": tmp_path})})
    yield parts
    parts.config = former


def test_what_is_saved_comes_back(here):
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    np.random.standard_normal()  # leaves a second number in store
    path = here.save(3, queue_state=b"what waits")
    wanted = torch.rand(3), random.random(), np.random.standard_normal()
    torch.manual_seed(8)
    random.seed(8)
    np.random.seed(8)
    counters, queue_state = here.load(path)
    assert (counters, queue_state) == (Counters(3, 6), b"what waits")
    assert torch.equal(torch.rand(3), wanted[0])
    assert (random.random(), np.random.standard_normal()) == wanted[1:]


def test_only_trainable_weights_are_in_it(here):
    path = here.save(1)
    [model] = path.rglob("mp_rank_*_model_states.pt")
    names = torch.load(model, weights_only=False)["module"].keys()
    assert names and all(".lora_" in name for name in names)


def test_the_newest_committed_one_is_chosen_and_the_oldest_go(here, tmp_path):
    for batch in (1, 2, 3):
        here.save(batch)
    assert [path.name for path in list_committed(tmp_path)] == ["batch-00000002", "batch-00000003"]
    assert not (tmp_path / "checkpoints" / "batch-00000001").exists()
    newest = tmp_path / "checkpoints" / "batch-00000003"
    assert find_checkpoint("auto", tmp_path) == find_checkpoint(str(tmp_path), tmp_path / "other") == newest
    (newest / MANIFEST).unlink()
    assert find_checkpoint("auto", tmp_path).name == "batch-00000002"
    with pytest.raises(CheckpointError, match="never committed"):
        find_checkpoint(str(newest), tmp_path)


def test_saving_a_batch_again_replaces_what_a_crash_left(here, tmp_path):
    leftover = tmp_path / "checkpoints" / "batch-00000001"
    leftover.mkdir(parents=True)
    (leftover / "torn.pt").write_bytes(b"half")
    path = here.save(1)
    assert path == leftover and not (leftover / "torn.pt").exists()
    here.load(path)


@pytest.mark.parametrize("moment", ["save_generators", "_digest", "write_atomically"])
def test_a_crash_while_saving_leaves_the_former_checkpoint(here, tmp_path, monkeypatch, moment):
    here.save(1)

    def crash(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(learner.checkpoint, moment, crash)
    with pytest.raises(OSError, match="No space left"):
        here.save(2)
    monkeypatch.undo()
    assert find_checkpoint("auto", tmp_path).name == "batch-00000001"
    here.load(find_checkpoint("auto", tmp_path))


@pytest.mark.skipif(not mounts_permitted(), reason="mounting is not permitted here")
@pytest.mark.parametrize(
    ("spoil", "words"),
    [(make_full, "No space left on device"), (make_read_only, "Read-only file system")],
)
def test_a_disk_that_cannot_be_written_is_said_and_the_former_checkpoint_stays(here, tmp_path, spoil, words):
    committed = here.save(1)

    def save():
        spoil(committed.parent)
        here.save(2)

    with ThreadPoolExecutor(1) as own_mounts, pytest.raises(CheckpointError, match=words) as refused:
        own_mounts.submit(save).result()
    assert "this checkpoint cannot be written" in str(refused.value) and "--resume auto" in str(refused.value)
    assert list(committed.parent.iterdir()) == [committed], "nothing half-written"
    here.load(find_checkpoint("auto", tmp_path))
    assert here.save(2) in list_committed(tmp_path), "once the disk is mended"


def test_a_half_removed_checkpoint_is_not_chosen(here, tmp_path, monkeypatch):
    here.save(1)
    here.save(2)

    def crash(*_args):
        raise OSError("power cut")

    monkeypatch.setattr(learner.checkpoint.shutil, "rmtree", crash)
    with pytest.raises(OSError, match="power cut"):
        here.save(3)
    monkeypatch.undo()
    assert [path.name for path in list_committed(tmp_path)] == ["batch-00000002", "batch-00000003"]
    assert (tmp_path / "checkpoints" / "batch-00000001").exists()


@pytest.mark.parametrize("pattern", ["*_optim_states.pt", "queue.safetensors", "rng-rank0.safetensors"])
def test_a_damaged_file_is_refused_by_name(here, pattern):
    path = here.save(1)
    [file] = path.rglob(pattern)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=f"{file.name}: damaged"):
        here.load(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file.name}: damaged"):
        here.load(path)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("learner", "ranks", 2, "learner.ranks is 1 in the checkpoint and 2 in this run; set learner.ranks=1"),
        ("learner", "updates_per_batch", 4, "learner.updates_per_batch is 2 in the checkpoint and 4 in this run"),
        ("model", "pretrained", "elsewhere", "in the checkpoint and elsewhere in this run"),
        ("run", "seed", 1, "run.seed is 0 in the checkpoint and 1 in this run"),
    ],
)
def test_another_run_s_checkpoint_is_refused(here, section, field, value, message):
    path = here.save(1)
    changed = getattr(here.config, section).model_copy(update={field: value})
    with pytest.raises(CheckpointError) as refused:
        check_checkpoint(path, here.config.model_copy(update={section: changed}))
    assert message in str(refused.value)


def test_another_objective_or_adapter_is_refused(here):
    path = here.save(1)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["identity"]["learner.objective.type"] = "simpo"
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"learner\.objective\.type is simpo in the checkpoint and spo"):
        check_checkpoint(path, here.config)
    manifest["identity"]["learner.objective.type"] = "spo"
    name = next(iter(manifest["adapter"]))
    manifest["adapter"][name] = [1, 2]
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"is \[1, 2\] in the checkpoint and"):
        here.load(path)


def test_nothing_to_resume_from_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no committed checkpoint here"):
        find_checkpoint("auto", tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}'])
def test_a_foreign_manifest_is_refused(here, tmp_path, text):
    path = tmp_path / "checkpoints" / "batch-00000001"
    path.mkdir(parents=True)
    (path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError):
        check_checkpoint(path, here.config)
