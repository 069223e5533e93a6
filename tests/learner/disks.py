"""A disk that is full or read-only, for one thread of one process: mounts in a namespace of its own, gone with it."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

_CLONE_NEWNS = 0x00020000  # linux/sched.h; os.unshare is there from Python 3.12 on


@functools.cache
def mounts_permitted() -> bool:
    """May this process mount, as root of a virtual machine may and a user of a container may not? Tried out."""
    steps = "mount --make-rprivate / && mount -t tmpfs tmpfs $0 && mount --bind $0 $0 && mount -o remount,bind,ro $0"
    try:
        with tempfile.TemporaryDirectory() as folder:
            tried = subprocess.run(["unshare", "--mount", "sh", "-c", steps, folder], capture_output=True)
        return tried.returncode == 0
    except FileNotFoundError:
        return False


def make_full(folder: Path) -> None:
    """From now on this thread sees a disk of 16 KB at `folder`."""
    _own_namespace()
    _mount("-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder))


def make_read_only(folder: Path) -> None:
    """From now on this thread can read `folder` and not write it."""
    _own_namespace()
    _mount("--bind", str(folder), str(folder))
    _mount("-o", "remount,bind,ro", str(folder))


def _own_namespace() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _mount("--make-rprivate", "/")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
