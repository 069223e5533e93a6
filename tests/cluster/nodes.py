"""Nodes of a Ray cluster as `ray start` makes them, all on this machine, with a token of their own; what they offer."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from tests.learner.command import MARKER, ROOT, kill_marked, marked
from tests.polling import until

READY_SEC = 240
FOREIGN = ("PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
"""Of this process, and not for those of the cluster: its jobs run what was uploaded."""


class Node:
    """One `ray start --block` and everything that it has started."""

    def __init__(self, log: Path, arguments: list[str], environment: dict[str, str]) -> None:
        self.marker = uuid.uuid4().hex
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [ray_command(), "start", "--block", "--disable-usage-stats", *arguments], start_new_session=True,
                env={**environment, MARKER: self.marker}, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def until_said(self, pattern: str) -> re.Match[str]:
        """Wait until the command has printed `pattern`."""
        text = self._log.read_text
        found: re.Match[str] = until(lambda: re.search(pattern, text()), READY_SEC, text, self._process.poll)
        return found

    def pids(self, title: str) -> list[int]:
        """Processes of this node whose command line holds `title`."""
        return sorted(pid for pid, line in marked(self.marker).items() if title in line)

    def kill(self) -> None:
        """kill -9 of all at once, as a machine that is switched off."""
        kill_marked(self.marker)
        self._process.wait()


class Cluster:
    """A head node without CPUs for actors; other nodes join and leave. `close` ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._home = folder / "home"
        self._home.mkdir()
        self._temporary = Path(tempfile.mkdtemp(prefix="atelier-", dir="/tmp"))  # paths of sockets must be short
        self._nodes: list[Node] = []
        subprocess.run(
            [ray_command(), "get-auth-token", "--generate"], env=self.environment(), check=True, capture_output=True,
            timeout=READY_SEC,
        )  # fmt: skip
        self.head = self._start(
            "head", "--head", "--port=0", "--num-cpus=1", f"--dashboard-port={free_port()}",
        )  # fmt: skip
        self.address = self.head.until_said(r"ray start --address='(\S+)'")[1]
        self.dashboard = self.head.until_said(r"http://127\.0\.0\.1:\d+")[0]

    def environment(self, **more: str) -> dict[str, str]:
        """Of a shell that may use the cluster: its token is where Ray keeps it, below the home directory."""
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        return {
            **kept, "HOME": str(self._home), "RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": str(READY_SEC),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0", **more,
        }  # fmt: skip

    def add(self, name: str, resources: str) -> Node:
        """A node with `resources`, a JSON text; returns once it has joined."""
        node = self._start(name, f"--address={self.address}", "--num-cpus=2", f"--resources={resources}")
        node.until_said("Ray runtime started")
        return node

    def _start(self, name: str, *arguments: str) -> Node:
        # A directory of its own, as on a machine of its own: Ray unpacks a job's upload there again for each node,
        # and would take the working directory away from under what the other nodes run.
        common = [
            f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=200000000",
            f"--temp-dir={self._temporary / str(len(self._nodes))}",
        ]  # fmt: skip
        node = Node(self._folder / f"{name}.log", [*arguments, *common], self.environment())
        self._nodes.append(node)
        return node

    def job(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`ray job ..` from another shell."""
        verb, *rest = arguments
        return subprocess.run(
            [ray_command(), "job", verb, "--address", self.dashboard, *rest], env=environment or self.environment(),
            capture_output=True, text=True, timeout=2 * READY_SEC,
        )  # fmt: skip

    def uploads(self) -> list[Path]:
        """Directories that jobs were sent to run in, as the cluster unpacked them."""
        return sorted(self._temporary.glob("*/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))

    def close(self) -> None:
        for node in reversed(self._nodes):
            node.kill()
        shutil.rmtree(self._temporary, ignore_errors=True)  # Ray's own may still be writing


def checkout(folder: Path) -> Path:
    """The repository as it lies in a working copy, with an environment and a run in it."""
    left_out = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".*_cache", "*.egg-info", "build")
    copy = shutil.copytree(ROOT, folder / "checkout", ignore=left_out)
    for name in (".venv/lib", "runs/quickstart/checkpoints"):
        (copy / name).mkdir(parents=True)
        (copy / name / "large.bin").write_bytes(os.urandom(1 << 20))
    return copy


def ray_command() -> str:
    return str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
