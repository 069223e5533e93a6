"""The command: refusals before anything starts, and whole runs of a tiny model with every real part, under Ray."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict

import pytest
from diffusers import StableDiffusionPipeline
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learner import main as command
from learner.best import read_best
from learner.committed import MANIFEST, CheckpointError, Counters, checkpoint_path, identity, list_committed
from learner.run_dir import RunDir, RunDirError
from learner.summary import read_summary
from tests.learner.command import FINISH_SEC, Command, metrics, tiny_settings
from tests.learner.test_telemetry import steps_of


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(tmp_path_factory.mktemp("main"))


def refused(capsys, arguments, text):
    assert command.main(arguments) == 1
    assert text in capsys.readouterr().err


def test_options_and_overrides_come_in_any_order():
    options = command.parse(["a.b=1", "--resume", "auto", "c=2", "--config", "x.yaml", "--dry-run"])
    assert options.overrides == ["a.b=1", "c=2"] and options.resume == "auto" and options.dry_run
    with pytest.raises(SystemExit) as wrong:
        command.parse(["--nonsense"])
    assert wrong.value.code == 2


def test_a_bad_configuration_is_refused_before_anything_starts(capsys, settings, tmp_path):
    run_dir = f"run.dir={tmp_path / 'run'}"
    refused(capsys, [*settings, run_dir, "learner.optimiser.lr=1"], "did you mean learner.optimizer")
    refused(capsys, [*settings, run_dir, "prompts.source=/nowhere/prompts.txt"], "/nowhere/prompts.txt")
    refused(capsys, [*settings, run_dir, "evaluation.num_prompts=6"], "evaluation.num_prompts is 6")
    refused(capsys, [*settings, run_dir, "model.pretrained=/nowhere/model"], "/nowhere/model: there is no such file")
    refused(capsys, [*settings, run_dir, "model.lora.target_modules=[to_x]"], "model.lora.target_modules")
    refused(capsys, [*settings, run_dir, "--resume", str(tmp_path)], "no committed checkpoint")
    refused(capsys, [*settings, run_dir, "--address", "127.0.0.1:1"], "no Ray cluster at '127.0.0.1:1'")
    assert not (tmp_path / "run").exists(), "nothing half-written"


def test_a_dry_run_shows_the_configuration_and_starts_nothing(capsys, settings, tmp_path):
    assert command.main([*settings, f"run.dir={tmp_path / 'run'}", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "groups_per_batch: 4" in shown and "learner rank" in shown
    assert command.main([*settings, "learner.resources.cpus=4096", "--dry-run"]) == 1
    assert "4096" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def load(settings, run_dir):
    return command.with_absolute_run_dir(command.load_config(None, [*settings, f"run.dir={run_dir}"]))


def test_a_run_directory_is_used_once(settings, tmp_path):
    config = load(settings, tmp_path / "run")
    with RunDir(config, None) as run_dir:
        with pytest.raises(RunDirError, match=rf"in use by a live run \(process {os.getpid()}\)"):
            RunDir(config, None)
        run_dir.start(config)
    with pytest.raises(RunDirError, match=r"holds a run already.*--resume auto"):
        RunDir(config, None)
    assert (tmp_path / "run" / "config.yaml").exists()


def test_resume_auto_starts_in_an_unused_directory(settings, tmp_path):
    with RunDir(load(settings, tmp_path / "run"), "auto") as run_dir:
        assert run_dir.checkpoint is None


def commit(config, batch):
    """A committed checkpoint without files."""
    path = checkpoint_path(config.run.path, batch)
    path.mkdir(parents=True)
    manifest = {"format": 1, "counters": asdict(Counters(batch, 2 * batch)), "identity": identity(config)}
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def test_resume_goes_on_from_the_newest_or_from_the_one_named(settings, tmp_path):
    config = load(settings, tmp_path / "run")
    paths = [commit(config, batch) for batch in (1, 2, 3)]
    with RunDir(config, "auto") as run_dir:
        assert run_dir.checkpoint == paths[2] and run_dir.counters == Counters(3, 6)
    with RunDir(config, str(paths[0])) as run_dir:
        assert run_dir.checkpoint == paths[0] and run_dir.counters.batch == 1
    assert list_committed(config.run.path) == [paths[0]], "a learner that restarts must not go on from a later one"
    assert (tmp_path / "run" / "checkpoints" / "abandoned-batch-00000003" / MANIFEST).exists()


def test_a_run_may_branch_off_into_an_unused_directory_only(settings, tmp_path):
    source = commit(load(settings, tmp_path / "source"), 1)
    config = load(settings, tmp_path / "run")
    with RunDir(config, str(source)) as run_dir:
        assert run_dir.checkpoint == source
    commit(config, 2)
    with pytest.raises(CheckpointError, match="has checkpoints of its own"):
        RunDir(config, str(source))


def test_a_directory_that_cannot_be_written_is_refused(settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirError, match="cannot be written"):
        RunDir(load(settings, tmp_path / "file" / "run"), None)


@pytest.fixture(scope="module")
def whole_run(settings, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return run_dir, *Command([*settings, "run.name=whole"], run_dir).finish()


def test_a_run_leaves_everything_where_it_says(whole_run, settings):
    run_dir, status, output = whole_run
    assert status == 0, output
    summary = read_summary(run_dir / "summary.json")
    assert summary.steps == 8 and summary.groups.trained == summary.groups.produced == 16
    assert summary.pairs_trained > 0 and summary.eval.before.keys() == summary.eval.after.keys() == {"reward"}
    assert {"driver", "learner", "evaluator", "rollout_worker"} == summary.peak_memory_bytes.keys()
    for name in ("grid.png", "config.yaml", "lora/pytorch_lora_weights.safetensors", "tb", "checkpoints"):
        assert (run_dir / name).exists(), name
    for text in ("step 8/8", "Finished 8 steps", "tensorboard --logdir", "load_lora_weights"):
        assert text in output, output
    assert "(raylet)" not in output, "Ray has nothing to warn about"
    assert [line["step"] for line in metrics(run_dir) if "loss/total" in line] == list(range(1, 9))
    evaluated = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in evaluated if "eval/reward" in line] == [0, 4, 8]
    (named,) = [tag for tag in evaluated[-1] if tag.startswith("eval/step_aware-")]
    assert named == f"eval/{summary.eval.scorer}" and evaluated[-1][named] == evaluated[-1]["eval/reward"]
    best = max((line for line in evaluated if line.get("step") in (4, 8)), key=lambda line: line["eval/reward"])
    kept = read_best(run_dir)
    assert (kept.value, kept.step) == (best["eval/reward"], best["step"])
    assert kept.sha256 in (run_dir / "best" / "lora" / "README.md").read_text() and "Best weights: " in output
    assert [line["step"] for line in evaluated if "diversity/across_vendi" in line] == [0, 4, 8]
    events = EventAccumulator(str(run_dir / "tb"), size_guidance={"images": 0})
    events.Reload()
    sheets = {tag: [event.step for event in events.Images(tag)] for tag in ("eval/grid", "eval/before_after")}
    assert sheets == {"eval/grid": [0, 4], "eval/before_after": [8]}
    assert "Changes of the pictures from the starting model" in output and "appearance/saturation" in output
    pretrained = next(text for text in settings if text.startswith("model.pretrained")).partition("=")[2]
    pipeline = StableDiffusionPipeline.from_pretrained(pretrained, safety_checker=None)
    for exported in (run_dir / "lora", run_dir / "best" / "lora"):
        pipeline.load_lora_weights(exported)
        pipeline.unload_lora_weights()


@pytest.mark.timeout(2 * FINISH_SEC + 60)
def test_interrupted_and_resumed_equals_whole(whole_run, settings, tmp_path):
    """SIGTERM ends the run with a checkpoint and status 143; going on gives the weights and losses of a whole run.

    The signal goes to the whole process group. Before it comes, nothing of the run listens beyond loopback.
    """
    run_dir = tmp_path / "run"
    run = Command([*settings, "run.name=parts"], run_dir)
    run.until(lambda: list_committed(run_dir)[1:])
    listening = run.listening()
    run.signal_group(signal.SIGTERM)
    status, output = run.finish()
    assert listening and listening.keys() <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    run.assert_no_orphans()
    assert status == 143, output
    assert "Stopped by SIGTERM" in output and "--resume auto" in output

    status, output = Command([*settings, "run.name=parts"], run_dir, "--resume", "auto").finish()
    assert status == 0, output
    assert "Resuming after batch" in output
    assert (
        read_summary(run_dir / "summary.json").adapter_sha256
        == read_summary(whole_run[0] / "summary.json").adapter_sha256
    )
    assert [line for line in metrics(run_dir) if "loss/total" in line] == [
        line for line in metrics(whole_run[0]) if "loss/total" in line
    ]
    assert steps_of(run_dir, "loss/total") == list(range(1, 9)), "in TensorBoard no step twice, none missing"


@pytest.mark.slow
def test_a_run_that_drifts_too_far_stops_and_keeps_its_checkpoint(settings, tmp_path):
    limit = "evaluation.stop_on_drift={appearance/saturation: 1e-6}"
    more = ["run.name=drift", "learner.ranks=1", "learner.max_batches=2000", "evaluation.every_batches=1", limit]
    status, output = Command([*settings, *more], tmp_path / "run").finish()
    assert status == 1, output
    assert "error: drift from the starting model: appearance/saturation has changed by" in output, output
    assert "(limit 1e-06)" in output and "--resume auto" in output
    assert list_committed(tmp_path / "run"), "a checkpoint to go on from"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    drift = {line["step"]: line["appearance/saturation"] for line in lines if "appearance/saturation" in line}
    assert drift.pop(0) == 0.0 and any(abs(change) > 1e-6 for change in drift.values())
