"""Telemetry: what TensorBoard reads back, metrics.jsonl line by line, resuming, the progress line, the Ray wrapper."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import random
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image
from tensorboard import program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import AtelierConfig
from configs.schema import RunSection
from learner.metrics_log import MetricsLog, read_metrics
from learner.progress import PROGRESS_TAGS, ProgressLine, format_duration, format_progress
from learner.telemetry import Telemetry, create_telemetry, drop_later_events, flatten_config

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}


def read_back(run_dir: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run_dir / "tb"), size_guidance=EVERYTHING)
    accumulator.Reload()
    return accumulator


def steps_of(run_dir: Path, tag: str) -> list[int]:
    return [event.step for event in read_back(run_dir).Scalars(tag)]


def png_bytes(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_scalars_and_images_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path)
    telemetry.scalars(1, {"reward/final_mean": 2.5, "loss/total": 0.5})
    telemetry.scalars(1, {"eval/judge/crisp": 0.25})
    telemetry.scalars(2, {"reward/final_mean": 3.5})
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    telemetry.images(2, {"eval/grid": png_bytes(7), "eval/array": picture})
    assert telemetry.latest(["reward/final_mean", "appearance/saturation"]) == {"reward/final_mean": 3.5}

    accumulator = read_back(tmp_path)
    assert [(e.step, e.value) for e in accumulator.Scalars("reward/final_mean")] == [(1, 2.5), (2, 3.5)]
    (grid,), (array,) = accumulator.Images("eval/grid"), accumulator.Images("eval/array")
    assert (grid.step, grid.width, grid.height, grid.encoded_image_string) == (2, 8, 8, png_bytes(7))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(array.encoded_image_string))), picture)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {key: lines[0][key] for key in lines[0] if key != "time"} == {
        "step": 1, "reward/final_mean": 2.5, "loss/total": 0.5, "eval/judge/crisp": 0.25,
    }  # fmt: skip
    telemetry.close()
    telemetry.close()
    with pytest.raises(RuntimeError, match="closed"):
        telemetry.scalars(3, {"reward/final_mean": 1.0})


def test_a_repeated_call_writes_nothing_again(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path)
    for _ in range(2):
        telemetry.scalars(1, {"reward/final_mean": 1.0, "loss/total": math.nan})
    telemetry.scalars(1, {"reward/final_mean": 1.0, "pairs/trained": 3.0})
    telemetry.close()
    reopened = Telemetry(tmp_path)
    reopened.scalars(1, {"reward/final_mean": 1.0, "loss/total": math.nan})
    assert reopened.progress()["nonfinite_scalars"] == 0
    reopened.close()
    for tag in ("reward/final_mean", "loss/total", "pairs/trained"):
        assert steps_of(tmp_path, tag) == [1]


def write_and_die(run_dir: Path) -> None:
    """kill -9 once the events of step 2 are on disk and before their line is."""
    telemetry = Telemetry(run_dir)
    telemetry.scalars(1, {"reward/final_mean": 1.0})
    telemetry.images(1, {"eval/grid": png_bytes(1)})
    MetricsLog.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    telemetry.scalars(2, {"reward/final_mean": 2.0, "loss/total": 0.5})


def test_what_a_death_left_between_the_event_and_its_line_is_written_once(tmp_path: Path) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(tmp_path,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert steps_of(tmp_path, "reward/final_mean") == [1, 2], "the event is on disk first"
    for _ in range(2):
        started_again = Telemetry(tmp_path)
        started_again.scalars(2, {"reward/final_mean": 2.0, "loss/total": 0.5})
        started_again.close()
    rewards = sorted(steps_of(tmp_path, "reward/final_mean"))  # files of one second are read by process id
    assert rewards == [1, 2] and steps_of(tmp_path, "loss/total") == [2]
    assert [event.step for event in read_back(tmp_path).Images("eval/grid")] == [1]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_events_do_not_go_with_a_lost_log(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path)
    telemetry.scalars(1, {"reward/final_mean": 1.0})
    telemetry.close()
    (tmp_path / "metrics.jsonl").unlink()
    Telemetry(tmp_path).close()
    assert steps_of(tmp_path, "reward/final_mean") == [1]


@pytest.mark.parametrize("tag", ["rewards/mean", "reward", "reward/", "optimizer/lr", ""])
def test_an_unknown_group_is_an_error_and_nothing_is_written(tmp_path: Path, tag: str) -> None:
    telemetry = Telemetry(tmp_path)
    with pytest.raises(ValueError, match="throughput"):
        telemetry.scalars(1, {"reward/final_mean": 1.0, tag: 1.0})
    with pytest.raises(ValueError, match="throughput"):
        telemetry.images(1, {tag: png_bytes(1)})
    telemetry.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_back(tmp_path).Tags()["scalars"] == []


def test_images_of_another_kind_are_refused(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path)
    with pytest.raises(ValueError, match=r"eval/grid.*float32"):
        telemetry.images(1, {"eval/grid": np.zeros((3, 8, 8), dtype=np.float32)})
    telemetry.close()


def test_non_finite_scalars_are_written_as_they_are_and_counted(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path)
    telemetry.scalars(1, {"loss/total": math.nan, "loss/grad_norm": math.inf, "reward/final_mean": 1.0})
    telemetry.scalars(2, {"loss/total": -math.inf})
    assert telemetry.progress()["nonfinite_scalars"] == 3
    telemetry.close()
    values = [event.value for event in read_back(tmp_path).Scalars("loss/total")]
    assert math.isnan(values[0]) and values[1] == -math.inf
    raw = (tmp_path / "metrics.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in raw]
    assert (strict[0]["loss/total"], strict[0]["loss/grad_norm"], strict[1]["loss/total"]) == (
        "NaN", "Infinity", "-Infinity",
    )  # fmt: skip
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(first["loss/total"]) and second["loss/total"] == -math.inf


@pytest.mark.parametrize("same_process", [False, True], ids=["new process", "live telemetry"])
def test_a_resume_leaves_no_duplicate_and_no_later_step(tmp_path: Path, same_process: bool) -> None:
    telemetry = Telemetry(tmp_path)
    for step in range(1, 11):
        telemetry.scalars(step, {"reward/final_mean": float(step)})
        telemetry.images(step, {"eval/grid": png_bytes(step)})
    telemetry.scalars(9, {"memory/only_before": 1.0})
    telemetry.hparams({"lr": 1.0}, {"eval/final": 0.5})
    if same_process:
        telemetry.resume_at(6)
    else:
        telemetry = Telemetry(tmp_path, resume_step=6)  # the first one was killed: it is never closed
    assert steps_of(tmp_path, "reward/final_mean") == [1, 2, 3, 4, 5, 6]
    for step in range(7, 9):
        telemetry.scalars(step, {"reward/final_mean": 100.0 + step})
        telemetry.images(step, {"eval/grid": png_bytes(100 + step)})
    telemetry.close()

    accumulator = read_back(tmp_path)
    assert [e.value for e in accumulator.Scalars("reward/final_mean")] == [1, 2, 3, 4, 5, 6, 107, 108]
    assert [e.step for e in accumulator.Images("eval/grid")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "memory/only_before" not in accumulator.Tags()["scalars"]
    assert "eval/final" not in accumulator.Tags()["scalars"]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["reward/final_mean"]) for line in lines] == [
        *((float(s), float(s)) for s in range(1, 7)), (7, 107), (8, 108),
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tb"]


def test_a_torn_last_record_and_line_do_not_survive_a_resume(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path)
    for step in range(1, 4):
        telemetry.scalars(step, {"reward/final_mean": float(step)})
    telemetry.close()
    (events,) = (tmp_path / "tb").iterdir()
    events.write_bytes(events.read_bytes()[:-5])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rewa')
    resumed = Telemetry(tmp_path, resume_step=3)
    resumed.scalars(3, {"loss/total": 1.0})
    resumed.scalars(4, {"reward/final_mean": 4.0})
    resumed.close()
    assert steps_of(tmp_path, "reward/final_mean") == [1, 2, 4]  # the torn record was step 3
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_rewriting_event_files_is_repeatable(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path)
    telemetry.scalars(1, {"reward/final_mean": 1.0})
    telemetry.scalars(2, {"reward/final_mean": 2.0})
    telemetry.close()
    drop_later_events(tmp_path / "tb", 1)
    once = [path.read_bytes() for path in (tmp_path / "tb").iterdir()]
    drop_later_events(tmp_path / "tb", 1)
    assert [path.read_bytes() for path in (tmp_path / "tb").iterdir()] == once


def test_metrics_lines_stay_sorted_and_merged_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    path, rng = tmp_path / "metrics.jsonl", random.Random(0)
    log, expected, newest = MetricsLog(path), {}, 0
    for _ in range(600):
        step = max(0, newest + rng.choice([1, 1, 1, 1, 0, -1, -5, -60]))
        newest = max(newest, step)
        values = {f"reward/{rng.randrange(4)}": rng.choice([rng.random(), math.inf])}
        log.write(step, values, time=1.0)
        expected.setdefault(step, {}).update(values)
        if rng.random() < 0.02:
            log.close()
            log = MetricsLog(path)
    log.close()
    found = {line["step"]: {k: v for k, v in line.items() if k not in ("step", "time")} for line in read_metrics(path)}
    assert list(found) == sorted(expected)
    assert found == expected
    latest: dict[str, float] = {}
    for step in sorted(expected):
        latest.update(expected[step])
    assert log.latest == latest


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        Telemetry(tmp_path)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[str]:
    """TensorBoard's own server over `tmp_path`; yields its address."""
    server = program.TensorBoard()
    server.configure(argv=["tensorboard", "--logdir", str(tmp_path), "--port", "0", "--load_fast", "false"])
    yield server.launch()


def ask(board: str, path: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{board}data/plugin/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def test_tensorboard_shows_one_run_with_hparams_and_final_scores(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run_dir = tmp_path / "quickstart"
    config = flatten_config(AtelierConfig())
    for attempt in range(2):  # a second attempt resumes and reports again: still one session
        telemetry = Telemetry(run_dir, resume_step=1 if attempt else None)
        if attempt == 0:
            telemetry.scalars(1, {"reward/final_mean": 1.0, "eval/judge/crisp": 0.25})
            telemetry.text(0, "eval/scorers", "| what | curves |\n|---|---|\n| in use | `eval/red-1` |")
        telemetry.scalars(2, {"reward/final_mean": 2.0})
        telemetry.images(2, {"eval/grid": png_bytes(3)})
        telemetry.hparams(config, {"eval/judge/crisp": 0.75, "reward/final_mean": 2.0})
        telemetry.close()
    assert [path for path in (run_dir / "tb").iterdir() if path.is_dir()] == []
    assert [e.step for e in read_back(run_dir).Scalars("reward/final_mean")] == [1, 2]

    board = request.getfixturevalue("board")
    ask_experiment = {"experimentName": "", "colParams": [], "startIndex": 0, "sliceSize": 10}
    experiment = ask(board, "hparams/experiment", {"experimentName": ""})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"learner.optimizer.lr", "model.lora.rank", "run.name", "schedule.type"} <= names
    tags = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {"eval/judge/crisp", "reward/final_mean"} <= tags
    groups = ask(board, "hparams/session_groups", {**ask_experiment, "allowedStatuses": ["STATUS_SUCCESS"]})
    (group,) = groups["sessionGroups"]
    assert group["hparams"]["learner.optimizer.lr"] == 6e-5
    scores = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert scores["eval/judge/crisp"] == 0.75 and scores["reward/final_mean"] == 2.0
    (page,) = ask(board, "text/text?run=quickstart%2Ftb&tag=eval%2Fscorers")
    assert "<code>eval/red-1</code>" in page["text"], "which scorer `reward` is, beside the curves"
    assert list(ask(board, "scalars/tags")) == ["quickstart/tb"]
    assert list(ask(board, "images/tags")) == ["quickstart/tb"]


def test_flattened_configuration_is_dotted_and_plain() -> None:
    flat = flatten_config(AtelierConfig())
    assert flat["learner.optimizer.lr"] == 6e-5
    assert flat["rollout.sampler.num_candidates"] == 4
    assert flat["evaluation.measures"] == "[]"
    assert "run.dir" not in flat
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())


def test_progress_reports_latest_values_and_time_left(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, total_steps=40, total_batches=10)
    assert telemetry.progress()["reward"] is None and telemetry.progress()["eta_sec"] is None
    telemetry.scalars(1, dict.fromkeys(PROGRESS_TAGS.values(), 1.0))
    telemetry.scalars(2, {"reward/final_mean": 7.0})
    progress = telemetry.progress()
    telemetry.close()
    assert (progress["step"], progress["total_steps"], progress["total_batches"]) == (2, 40, 10)
    assert (progress["reward"], progress["workers"], progress["batch"]) == (7.0, 1.0, 1.0)
    assert progress["eta_sec"] is not None and progress["eta_sec"] >= 0
    assert "NON-FINITE" not in format_progress(progress)


FULL = {
    "step": 120, "total_steps": 400, "batch": 30, "total_batches": 100, "reward": 21.42, "pairs_per_sec": 35.21,
    "clamped_share": 0.04, "queue_fill": 0.5, "staleness_steps": 3.1, "workers": 2, "eta_sec": 250.4,
    "nonfinite_scalars": 0,
}  # fmt: skip


def test_the_progress_line() -> None:
    assert format_progress(FULL) == (
        "step 120/400 · batch 30/100 · reward 21.420 · 35.2 pairs/s · clamped 4% · queue 50% · stale 3.1 · "
        "2 workers · ETA 4m10s"
    )
    assert format_progress({"step": 0, "nonfinite_scalars": 2}) == (
        "step 0 · batch - · reward - · - pairs/s · queue - · stale - · - workers · ETA - · NON-FINITE 2"
    )
    assert [format_duration(s) for s in (None, 0.4, 59.6, 3599, 3600, 11111)] == [
        "-", "0s", "1m00s", "59m59s", "1h00m", "3h05m",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_job_log_gets_a_line_now_and_then_and_a_terminal_one_line() -> None:
    log, clock = io.StringIO(), iter([0.0, 3.0, 10.0, 11.0, 12.0])
    line = ProgressLine(log, every_sec=10, clock=lambda: next(clock))
    for step in (1, 2, 3, 4):
        line.update({**FULL, "step": step})
    line.finish({**FULL, "step": 5})
    assert [text.split()[1] for text in log.getvalue().splitlines()] == ["1/400", "3/400", "5/400"]

    terminal = Terminal()
    line = ProgressLine(terminal)
    line.update({**FULL, "step": 100})
    line.update({**FULL, "step": 9})
    line.finish()
    first, second = terminal.getvalue().removeprefix("\r").split("\r")
    assert len(second.removesuffix("\n")) == len(first)
    assert terminal.getvalue().endswith("\n") and terminal.getvalue().count("\n") == 1


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_ray_wrapper_is_named_and_survives_a_death(tmp_path: Path, local_ray: None) -> None:
    config = AtelierConfig(run=RunSection(name="wrapped", dir=tmp_path))
    earlier = Telemetry(tmp_path)
    earlier.scalars(1, {"reward/final_mean": 0.5})
    earlier.scalars(2, {"reward/final_mean": 0.0})
    earlier.close()
    telemetry = create_telemetry(config, resume_step=1)
    ray.get(telemetry.scalars.remote(3, {"reward/final_mean": 1.5}))
    found = ray.get_actor("atelier-telemetry-wrapped", namespace="atelier")
    progress = ray.get(found.progress.remote())
    ray.kill(telemetry, no_restart=False)
    ray.get(telemetry.scalars.remote(4, {"reward/final_mean": 2.5}))
    ray.get(telemetry.close.remote())
    assert (progress["step"], progress["reward"], progress["total_steps"]) == (3, 1.5, 100)
    assert steps_of(tmp_path, "reward/final_mean") == [1, 3, 4]
