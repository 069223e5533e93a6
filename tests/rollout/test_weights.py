"""The mailbox hands out only verified adapters, survives restarts and damaged files, and takes versions back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import torch

from rollout.adapter import adapter_checksum, deserialise_adapter, serialise_adapter
from rollout.versions import in_force
from rollout.weights import AdapterVersion, WeightMailbox


def make_adapter(value: float) -> tuple[str, bytes]:
    """Checksum and bytes of an adapter full of `value`."""
    state = {"block.to_q.lora_A.weight": torch.full((2, 3), value), "block.to_q.lora_B.weight": torch.zeros(3, 2)}
    return adapter_checksum(state), serialise_adapter(state)


def make_version(step: int, batch: int, *, attempt: int = 0) -> tuple[AdapterVersion, bytes]:
    checksum, data = make_adapter(step + attempt / 10)
    return AdapterVersion(step=step, batch=batch, attempt=attempt, sha256=checksum), data


def open_mailbox(directory: Path, **options: int) -> WeightMailbox:
    return WeightMailbox(directory, store=lambda data: data, **options)


async def fetch(mailbox: WeightMailbox) -> tuple[AdapterVersion, str]:
    """The current version and the checksum of the bytes that workers get."""
    latest = await mailbox.latest()
    assert latest is not None
    version, [data] = latest
    return version, adapter_checksum(deserialise_adapter(data))


def test_published_bytes_are_those_handed_out_and_written(tmp_path):
    async def scenario():
        mailbox = open_mailbox(tmp_path / "adapters")
        assert await mailbox.latest() is None
        version, data = make_version(5, 1)
        await mailbox.publish(version, data)
        assert await fetch(mailbox) == (version, version.sha256)
        written = (tmp_path / "adapters" / "5.safetensors").read_bytes()
        assert adapter_checksum(deserialise_adapter(written)) == version.sha256
        assert not list(tmp_path.rglob("*.tmp"))

    asyncio.run(scenario())


def test_bytes_that_do_not_match_the_checksum_change_nothing(tmp_path):
    async def scenario():
        mailbox = open_mailbox(tmp_path)
        first, data = make_version(0, 0)
        await mailbox.publish(first, data)
        claimed, _ = make_version(4, 1)
        with pytest.raises(ValueError, match="weights of step 4 have checksum"):
            await mailbox.publish(claimed, data)
        with pytest.raises(ValueError, match="no published weights"):
            await mailbox.publish(claimed, b"garbage")
        assert (await fetch(mailbox))[0] == first
        assert [path.name for path in tmp_path.iterdir()] == ["0.safetensors"]

    asyncio.run(scenario())


def test_versions_only_go_forwards_within_an_attempt_and_repeating_one_is_harmless(tmp_path):
    async def scenario():
        mailbox = open_mailbox(tmp_path)
        second, data = make_version(8, 2)
        await mailbox.publish(second, data)
        await mailbox.publish(second, data)
        with pytest.raises(ValueError, match=r"\(0, 1\) is not after the current \(0, 2\).*attempt \+ 1"):
            await mailbox.publish(*make_version(4, 1))
        assert await mailbox.history() == [second]

    asyncio.run(scenario())


def test_a_restarted_learner_takes_later_versions_back(tmp_path):
    async def scenario():
        mailbox = open_mailbox(tmp_path)
        versions = [make_version(4 * batch, batch) for batch in range(4)]
        for version, data in versions:
            await mailbox.publish(version, data)
        again, data = make_version(8, 2, attempt=1)
        await mailbox.publish(again, data)
        expected = [versions[0][0], versions[1][0], again]
        assert await mailbox.history() == [*(version for version, _ in versions), again]
        assert in_force(await mailbox.history()) == expected
        reopened = open_mailbox(tmp_path)
        assert (await fetch(reopened))[0] == again
        assert in_force(await reopened.history()) == expected

    asyncio.run(scenario())


def test_a_restarted_mailbox_serves_the_newest_file_that_is_whole(tmp_path, caplog):
    async def scenario():
        mailbox = open_mailbox(tmp_path)
        for batch in range(3):
            await mailbox.publish(*make_version(batch, batch))
        newest = tmp_path / "2.safetensors"
        newest.write_bytes(newest.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
        (tmp_path / "9.safetensors").write_bytes(b"half a fi")
        (tmp_path / "3.safetensors.tmp").write_bytes(b"half a fi")
        reopened = open_mailbox(tmp_path)
        assert (await fetch(reopened))[0].step == 1
        assert not list(tmp_path.glob("*.tmp"))

    asyncio.run(scenario())
    assert "2.safetensors" in caplog.text and "9.safetensors" in caplog.text


def test_only_the_newest_files_are_kept(tmp_path):
    async def scenario():
        mailbox = open_mailbox(tmp_path, keep_files=3)
        for batch in range(6):
            await mailbox.publish(*make_version(batch * 10, batch))

    asyncio.run(scenario())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["30.safetensors", "40.safetensors", "50.safetensors"]


def test_large_weights_are_let_go_but_their_versions_stay_known(tmp_path):
    versions = [make_version(step, batch) for batch, step in enumerate((0, 10, 20, 30, 40))]

    async def scenario():
        mailbox = open_mailbox(tmp_path, keep_files=4, keep_bytes=1)
        for version, data in versions:
            await mailbox.publish(version, data)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["10.json", "20.json", "30.safetensors", "40.safetensors"]
        reopened = open_mailbox(tmp_path)
        assert (await fetch(reopened))[0] == versions[-1][0]
        assert await reopened.history() == [version for version, _ in versions[1:]]

        (tmp_path / "40.safetensors").write_bytes(b"damaged")
        (tmp_path / "20.json").write_text("{}")
        former = open_mailbox(tmp_path)
        assert await former.history() == [versions[1][0], versions[3][0]]
        again, data = make_version(20, 2, attempt=1)
        await former.publish(again, data)
        assert await fetch(former) == (again, again.sha256)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["10.json", "20.safetensors"]

    asyncio.run(scenario())


def test_a_write_that_fails_leaves_the_old_version_in_use(tmp_path, monkeypatch):
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    async def scenario():
        mailbox = open_mailbox(tmp_path)
        first, data = make_version(0, 0)
        await mailbox.publish(first, data)
        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            await mailbox.publish(*make_version(1, 1))
        assert (await fetch(mailbox))[0] == first
        assert [path.name for path in tmp_path.iterdir()] == ["0.safetensors"]

    asyncio.run(scenario())


def test_waiters_wake_on_publish_and_on_close(tmp_path):
    async def scenario():
        mailbox = open_mailbox(tmp_path)
        waiter = asyncio.create_task(mailbox.wait_for(2))
        change = asyncio.create_task(mailbox.wait_change(None))
        await asyncio.sleep(0)
        first, data = make_version(1, 1)
        await mailbox.publish(first, data)
        assert await change == first
        assert not waiter.done()
        second, data = make_version(2, 2)
        await mailbox.publish(second, data)
        assert await waiter == second
        assert await mailbox.wait_change(first) == second
        assert await mailbox.wait_for(7, timeout_sec=0.01) is None
        late = asyncio.create_task(mailbox.wait_change(second))
        await asyncio.sleep(0)
        await mailbox.close("the run is over")
        assert await late is None
        assert await mailbox.wait_for(0) is None

    asyncio.run(scenario())
