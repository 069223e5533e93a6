"""Peak memory of a command with everything that it starts: the sum of proportional set sizes, by process title.

    python -m tests.benchmarks.memory -- python -m learner.main --config quickstart run.name=measured

A proportional set size counts a page that n processes share as 1/n page each, so the sum is what the machine gives up.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter

import psutil

INTERVAL_SEC = 1.0


def tree_sizes(root: psutil.Process) -> Counter[str]:
    """Bytes by process title for `root` and its descendants."""
    sizes: Counter[str] = Counter()
    for process in [root, *root.children(recursive=True)]:
        try:
            words = process.cmdline() or [process.name()]
            sizes[" ".join(words)[:60]] += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # it ended while being read
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="+")
    command = parser.parse_args().command
    child = subprocess.Popen(command)
    root, peak, began, peak_sec = psutil.Process(child.pid), Counter[str](), time.monotonic(), 0.0
    while child.poll() is None:
        sizes = tree_sizes(root)
        if sizes.total() > peak.total():
            peak, peak_sec = sizes, time.monotonic() - began
        time.sleep(INTERVAL_SEC)
    took_sec = time.monotonic() - began
    print(f"\npeak {peak.total() / 1e9:.2f} GB after {peak_sec:.0f} s; the command took {took_sec:.0f} s")
    for title, size in peak.most_common():
        print(f"{size / 1e9:6.2f} GB  {title}")
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
