"""`python -m learner.main` as a process: a tiny run with every real part, and what tests need to follow and end it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from tests.learner.inprocess import PROMPTS
from tests.polling import until
from tests.tiny import MAX_TOKENS, tiny_pipeline, tiny_tokenizer

ROOT = Path(__file__).parents[2]
FINISH_SEC = 280
MARKER = "ATELIER_TEST_RUN"
"""Environment variable that every process of one command inherits, Ray's among them."""


def tiny_clip(folder: Path) -> Path:
    """A CLIP of random weights for the step-aware scorer."""
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer(folder)
    shared = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}
    text = {
        **shared, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**shared, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    return folder


def tiny_settings(folder: Path) -> list[str]:
    """Overrides of the quickstart that make it tiny: sync, two ranks, 4 prompts a batch, 4 batches of 2 steps."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    return [
        f"model.pretrained={tiny_pipeline(folder / 'pipeline')}", "noise.num_steps=5", "noise.guidance_scale=2.0",
        f"prompts.source={prompts}", f"evaluation.prompts={prompts}", "evaluation.num_prompts=4",
        "evaluation.grid_size=4", "evaluation.measures=[]", "evaluation.every_batches=2",
        f"rollout.scorer.clip={tiny_clip(folder / 'clip')}",
        "rollout.sampler.num_candidates=2", "rollout.sampler.threshold=0.0", "rollout.workers.chunk_groups=2",
        "learner.ranks=2", "learner.resources={cpus: 0.25}", "learner.groups_per_batch=4", "learner.max_batches=4",
        "learner.optimizer.warmup_steps=0", "rollout.workers.initial=1", "rollout.workers.resources={cpus: 0.5}",
        "learner.optimizer.lr=1e-3", "checkpoint.every_batches=1", "schedule={type: sync}",
        "checkpoint.best={metric: reward}",
    ]  # fmt: skip


def marked(marker: str) -> dict[int, str]:
    """Process id and command line of everything that lives with this marker in its environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARKER}={marker}".encode() in (folder / "environ").read_bytes():
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if title:  # else a zombie
                    found[int(folder.name)] = title
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def kill_marked(marker: str) -> None:
    """kill -9 of them all, and of those that they start meanwhile."""
    while alive := marked(marker):
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Command:
    """One running command; `marker` finds all of its processes."""

    def __init__(self, settings: list[str], run_dir: Path, *more: str, cwd: Path = ROOT, **environment: str) -> None:
        self.run_dir = run_dir
        self.marker = uuid.uuid4().hex
        given = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", MARKER: self.marker, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "learner.main", *settings, f"run.dir={run_dir}", *more]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe that nobody reads would stop a long run)
        self.process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **given, **environment}, start_new_session=True,
            stdout=self._output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def output(self) -> str:
        """What it has printed so far."""
        return Path(f"/proc/self/fd/{self._output.fileno()}").read_text(errors="replace")

    def until(self, condition: Callable[[], Any], timeout_sec: float = FINISH_SEC) -> Any:
        """Wait for something in its processes or their files; its first true value."""

        def explain() -> str:
            status = self.process.poll()
            self.kill_everything()
            return f"{self.output()}\nexit status {status}"

        return until(condition, timeout_sec, explain, self.process.poll)

    def finish(self, timeout_sec: float = FINISH_SEC) -> tuple[int, str]:
        """Exit status and output."""
        try:
            status = self.process.wait(timeout=timeout_sec)
        except subprocess.TimeoutExpired:
            self.kill_everything()
            pytest.fail(f"still running after {timeout_sec} s:\n{self.output()[-4000:]}")
        return status, self.output()

    def processes(self) -> dict[int, str]:
        """Process id and command line of everything that the command has started and that lives."""
        return marked(self.marker)

    def pids(self, title: str) -> list[int]:
        """Of the processes whose command line holds `title`, as `ray::PoolActor`."""
        return sorted(pid for pid, line in self.processes().items() if title in line)

    def signal_group(self, number: int) -> None:
        """To every process of the command's group, as a terminal and a Slurm step send it."""
        os.killpg(self.process.pid, number)

    def listening(self) -> dict[str, list[str]]:
        """Address -> what listens there, of all processes: TCP, and UDP that is open to whoever sends."""
        found: dict[str, list[str]] = {}
        for pid, title in self.processes().items():
            try:
                sockets = psutil.Process(pid).net_connections("inet")
            except psutil.NoSuchProcess:
                continue
            for each in sockets:
                if each.status == psutil.CONN_LISTEN or (each.type == socket.SOCK_DGRAM and not each.raddr):
                    found.setdefault(each.laddr.ip, []).append(f"{title[:60]} :{each.laddr.port}")
        return found

    def ray_address(self) -> str:
        """HOST:PORT of the Ray that it has started for itself."""
        lines = self.processes().values()
        return next(found[1] for line in lines if (found := re.search(r"/raylet .*--gcs-address=(\S+)", line)))

    def kill_everything(self) -> None:
        """kill -9 of the command and of all of its processes."""
        kill_marked(self.marker)
        self.process.wait()

    def assert_no_orphans(self) -> None:
        """Nothing of it lives on; what is just ending is waited for."""

        def explain() -> str:
            alive = self.processes()
            self.kill_everything()
            return f"orphans: {alive}"

        until(lambda: not self.processes(), 60, explain)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, without what depends on the clock."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    kept = ("step", "loss/", "ratio/", "pairs/", "reward/")
    return [{k: v for k, v in json.loads(line).items() if k.startswith(kept)} for line in lines]
