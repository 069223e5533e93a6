"""A run, from the command line to the last words. `python -m learner.main` trains the bundled miniature; on a cluster
    ray job submit --working-dir . -- python -m learner.main --config configs/sd15_spo.yaml run.dir=/shared/runs/sd15

    parse ─► configuration ─► run directory ─► Ray ─► actors ─┬─► evaluation of the base ──────────┬─► after ─► export
                                                              └─► pool, learner thread ─► watch ───┘
    While it watches, the driver shows progress; a signal, or a pool that gave up, closes the queue: the learner then
    finishes its batch and saves a checkpoint.

Exit status: 0 finished, 1 failed, refused, or finished without a change to the weights, 2 wrong usage, 130 and 143
interrupted by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

import ray

from configs.cautions import cautions
from configs.errors import ConfigError
from configs.load import dump_config, load_config
from configs.memory import render_memory
from configs.placement import compare, placement, render_placement
from configs.schema import AtelierConfig
from learner import connection
from learner.committed import CheckpointError
from learner.driver import Driver, RunError
from learner.inputs import InputError, read_inputs
from learner.progress import say
from learner.run_dir import RunDir, RunDirError
from learner.signals import Interrupted, Signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    try:
        config = with_absolute_run_dir(load_config(options.config, options.overrides))
        for sentence in cautions(config):
            say(f"note: {sentence}")
        if options.dry_run:
            return dry_run(config, options.address)
        with Signals() as signals, RunDir(config, options.resume) as run_dir:
            return run(config, run_dir, options.address, signals)
    except Interrupted as interrupted:
        say(f"Stopped by {interrupted} before training began")
        return interrupted.status
    except (ConfigError, RunDirError, CheckpointError, ConnectionError, InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options and dotted overrides, in any order."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.main", description="Post-train a diffusion model to a taste."
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file or preset (default: the quickstart preset)")
    parser.add_argument("--resume", metavar="auto|PATH", help="go on from the newest checkpoint, or from this one")
    parser.add_argument("--dry-run", action="store_true", help="show the resolved configuration and the placement")
    parser.add_argument("--address", help="Ray cluster (default: $RAY_ADDRESS, else one on this machine)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for instance learner.optimizer.lr=1e-5")
    return parser.parse_intermixed_args(arguments)


def with_absolute_run_dir(config: AtelierConfig) -> AtelierConfig:
    """The same run for processes in other working directories."""
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": config.run.path.resolve()})})


def dry_run(config: AtelierConfig, address: str | None) -> int:
    """Print the resolved configuration, placement and expected memory. Status 1 where the cluster has too little."""
    say(dump_config(config))
    resources = connection.resources(address)
    say(render_placement(config, resources))
    say(render_memory(config))
    return 1 if compare(placement(config), resources) else 0


def run(config: AtelierConfig, run_dir: RunDir, address: str | None, signals: Signals) -> int:
    """Everything after the configuration is known and the run directory taken."""
    try:
        if note := read_inputs(config):
            say(f"note: {note}")
        connect(address, signals)
        try:
            if short := compare(placement(config), ray.cluster_resources()):
                raise RunError("the cluster has too little for this run\n" + "\n".join(short))
            return Driver(config, run_dir, signals).run()
        finally:
            ray.shutdown()
    finally:
        run_dir.discard()


def connect(address: str | None, signals: Signals) -> None:
    """Join or start Ray. Raises ConnectionError, or Interrupted for a signal meanwhile."""
    try:
        connection.connect(address)
    except SystemExit as error:  # Ray's own handler of SIGTERM was in place
        raise Interrupted(signal.SIGTERM) from error
    finally:
        signals.install()


if __name__ == "__main__":
    sys.exit(main())
