"""Train a step-aware preference model, from the command line to its files (docs/spm.md).

    python -m learner.train_spm --config sd15_spm data.source=/data/pickapic/train
    python -m learner.train_spm --config sd15_spm --dry-run       # resolved configuration, memory; starts nothing
    python -m learner.train_spm --config runs/sd15-spm/config.yaml --resume

    parse ─► configuration ─► run directory ─► inputs looked at ─► Ray Train: train_preference × ranks ─► run.dir/spm

Exit status: 0 finished, 1 failed or refused, 2 wrong usage, 130 and 143 interrupted by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from configs.errors import ConfigError
from configs.load import dump_config, load_as
from configs.spm import SpmConfig
from configs.spm_memory import render_spm_memory
from learner import connection
from learner.committed import CheckpointError
from learner.datasets.order import OrderedReader
from learner.datasets.rows import DataError
from learner.lost_ranks import LossReader
from learner.preference import checkpoint
from learner.preference.output import load_start
from learner.preference.train import training_pairs, validation_pairs
from learner.preference.trainer import preference_rank
from learner.progress import say
from learner.ranks import LearnerThread, rank_trainer
from learner.run_dir import RunDir, RunDirError
from learner.signals import Interrupted, Signals
from reward.step_aware import WEIGHTS
from rollout.weights import write_atomically

POLL_SEC = 0.5
_ACCURACY = "eval/accuracy_t"


class TrainingError(Exception):
    """Training cannot start, or ended badly. The message is for the console."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    try:
        config = load_as(SpmConfig, options.config, options.overrides)
        run = config.run.model_copy(update={"dir": config.run.path.resolve()})
        config = config.model_copy(update={"run": run})
        if options.dry_run:
            say(dump_config(config))
            say(_demand(config))
            say(render_spm_memory(config))
            return 0
        with RunDir(config, options.resume, checkpoint.check) as run_dir:
            return train(config, run_dir, options.address)
    except (ConfigError, RunDirError, CheckpointError, ConnectionError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options and dotted overrides, in any order."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.train_spm", description="Train a step-aware preference model."
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="YAML file or preset (sd15_spm, sdxl_spm)")
    parser.add_argument("--resume", metavar="auto|PATH", nargs="?", const="auto", help="go on from a checkpoint")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the resolved configuration and the expected memory, start nothing"
    )
    parser.add_argument("--address", help="Ray cluster (default: $RAY_ADDRESS, else one on this machine)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for instance training.optimizer.lr=1e-6")
    return parser.parse_intermixed_args(arguments)


def train(config: SpmConfig, run_dir: RunDir, address: str | None) -> int:
    """Everything after the configuration is known and the run directory taken. Returns the exit status."""
    try:
        say(look_at_inputs(config))
        connection.connect(address)
    except (TrainingError, ConnectionError):
        run_dir.discard()
        raise
    try:
        with Signals() as signals:
            run_dir.start(config)
            say(f"Run {config.run.name} in {run_dir.path}: {_demand(config)}")
            if run_dir.checkpoint is not None:
                say(f"Resuming after step {run_dir.counters.step} from {run_dir.checkpoint}")
            signals.wait_for_batch()
            return _follow(config, run_dir, signals)
    except Interrupted as interrupted:
        say(f"Stopped by {interrupted} before training began")
        return interrupted.status
    finally:
        ray.shutdown()


def look_at_inputs(config: SpmConfig) -> str:
    """What was found of pairs and weights, in words. Raises TrainingError for anything that cannot be used."""
    try:
        train_rows = OrderedReader(training_pairs(config), 0).epoch_rows
        validation_rows = OrderedReader(validation_pairs(config), 0).epoch_rows
        load_start(config)
    except (DataError, ValueError, OSError) as error:
        raise TrainingError(str(error)) from error
    return f"{train_rows} pairs to train on, {validation_rows} to validate on"


def _follow(config: SpmConfig, run_dir: RunDir, signals: Signals) -> int:
    """Start the ranks, show progress, say how it ended."""
    given = {"config": config, "resume_from": run_dir.checkpoint}
    training = config.training
    thread = LearnerThread(
        rank_trainer(preference_rank, given, training, config.run.path, config.checkpoint.max_failures)
    )
    losses = LossReader(run_dir.path, config.checkpoint.max_failures)
    thread.start()
    shown, resume = "", f"python -m learner.train_spm --config {run_dir.path / 'config.yaml'} --resume"
    while thread.is_alive():
        thread.join(POLL_SEC)
        if signals.received is not None:
            say(f"Stopped by {signals.name}; go on from the last checkpoint with: {resume}")
            return 128 + int(signals.received)
        for loss in losses.new():
            say(loss)
        if (line := _progress(run_dir.path, training.max_steps)) != shown:
            shown = line
            say(line)
    outcome: dict[str, Any] = dict(thread.outcome or {})
    if error := thread.error or outcome.get("error"):
        raise TrainingError(f"{error}\nafter mending it: {resume}")
    outcome["start_accuracy"] = _first_accuracy(run_dir.path)
    write_summary(config, outcome)
    say(_conclusion(config, outcome))
    return 0


def _progress(run_dir: Path, total: int) -> str:
    """The latest reported step in words."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    trained = [line for line in map(_json, lines[-2:]) if "loss/total" in line]
    if not trained:
        return ""
    last = trained[-1]
    return (
        f"step {last['step']}/{total} · loss {float(last['loss/total']):.4f} · "
        f"accuracy {float(last['pairs/accuracy']):.3f} · {float(last['throughput/pairs_per_sec']):.1f} pairs/s"
    )


def _first_accuracy(run_dir: Path) -> dict[int, float]:
    """Timestep to accuracy before the run's first step; a rank that was restarted knows only that of its checkpoint."""
    with (run_dir / "metrics.jsonl").open() as lines:
        first = _json(lines.readline())
    return {int(tag.removeprefix(_ACCURACY)): first[tag] for tag in first if tag.startswith(_ACCURACY)}


def _json(text: str) -> dict[str, Any]:
    """A line of metrics; empty while it is being written."""
    try:
        value: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value


def write_summary(config: SpmConfig, outcome: Mapping[str, Any]) -> None:
    """`summary.json` of the run directory: steps and accuracies before and after."""
    text = json.dumps({key: outcome[key] for key in ("counters", "start_accuracy", "accuracy")}, indent=1)
    write_atomically(config.run.path / "summary.json", (text + "\n").encode())


def _conclusion(config: SpmConfig, outcome: Mapping[str, Any]) -> str:
    rows = [f"Finished {outcome['counters']['step']} steps. Accuracy on validation pairs, before and after:"]
    for timestep, after in outcome["accuracy"].items():
        rows.append(f"  t = {timestep:<4} {outcome['start_accuracy'][timestep]:.4f} -> {after:.4f}")
    folder = config.output
    rows.append(f"The model: rollout.scorer.clip={folder} rollout.scorer.checkpoint={folder / WEIGHTS}")
    return "\n".join(rows)


def _demand(config: SpmConfig) -> str:
    training = config.training
    batch = training.ranks * training.micro_batch_pairs * training.accumulation
    each = training.resources
    ranks = f"{training.ranks} rank(s), each {each.cpus:g} CPU, {each.gpus:g} GPU"
    return f"{training.max_steps} steps of {batch} pairs, {ranks}"


if __name__ == "__main__":
    sys.exit(main())
