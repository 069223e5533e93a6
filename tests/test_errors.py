"""docs/errors.md against the code: each of its rows is provoked, and what is said is compared with the row."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from configs.learner import AsyncSchedule, BestSection, EngineSection, OptimizerSection
from configs.load import load_config
from configs.model import ModelSection
from configs.placement import compare, placement
from configs.rollout import QueueSection, WorkersSection
from learner import cluster, connection, main
from learner.best import keep_if_best
from learner.checkpoint import load_checkpoint
from learner.committed import MANIFEST, Counters, check_checkpoint, find_checkpoint
from learner.engine import wrap_module
from learner.evaluations import EvaluationDesk
from learner.inputs import read_inputs
from learner.loop import _refuse_nonfinite
from learner.run_dir import RunDir
from learner.update import UpdateResult
from reward.frozen import check_prompt, check_scores
from reward.images import decode_image
from reward.remote import RemoteScorer
from reward.score_head import ScoreHead
from reward.weights_file import read_weights
from rollout.pool_gauges import StallClock
from rollout.prompt_length import overlong_note
from rollout.prompts import load_prompts
from rollout.replay import ReplayQueue
from rollout.versions import AdapterVersion
from tests.http_servers import Scripted, serving
from tests.learner.inprocess import single_process_group
from tests.learner.test_checkpoint import Parts, small_config
from tests.rollout.pool_fakes import FakeMailbox
from tests.rollout.test_worker import ITEMS, Setup
from tests.tiny import make_group, tiny_pipeline

DOCUMENT = Path(__file__).parent.parent / "docs" / "errors.md"
ROWS = re.findall(r"^\| `(.+?)` \| .+ \| .+ \|$", DOCUMENT.read_text(), flags=re.MULTILINE)


class Place:
    """Where one row is provoked: a directory, a tiny pipeline, and a checkpoint of it."""

    def __init__(self, folder: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.pipeline, self.monkeypatch = folder, pipeline, monkeypatch

    def config(self, *overrides: str):
        return main.with_absolute_run_dir(load_config(None, [f"run.dir={self.folder / 'run'}", *overrides]))

    def archive(self, *names: str) -> str:
        with tarfile.open(self.folder / "rows.tar", "w") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))
        return str(self.folder / "rows.tar")

    def prompts(self, text: str, name: str = "p.txt") -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def file(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def inputs(self, *overrides: str) -> None:
        read_inputs(self.config(*overrides))

    def scorer(self, **fields: object) -> None:
        self.inputs(*(f"rollout.scorer.{name}={value}" for name, value in fields.items()), "evaluation.measures=[]")

    def parts(self) -> Parts:
        single_process_group(self.folder)
        return Parts(small_config(self.pipeline, self.folder))


def refused_put(group) -> str:
    async def body() -> str:
        mailbox = FakeMailbox()
        mailbox.publish(AdapterVersion(0, 0, 0, "0" * 64))
        waiting = ReplayQueue(QueueSection(), AsyncSchedule(), 2, versions=mailbox)
        await waiting.expect((4, 8, 8))
        payload = group.to_bytes()
        return await waiting.put(payload, group.header(len(payload)))

    return asyncio.run(body())


def in_use(place: Place) -> None:
    with RunDir(place.config(), None):
        RunDir(place.config(), None)


def used(place: Place) -> None:
    with RunDir(place.config(), None) as run_dir:
        run_dir.start(place.config())
    RunDir(place.config(), None)


def unwritable(place: Place) -> None:
    place.prompts("in the way", "file")
    RunDir(place.config(f"run.dir={place.folder / 'file' / 'run'}"), None)


def in_another_encoding(place: Place) -> None:
    (place.folder / "p.txt").write_bytes(b"a disc\na \xff\n")
    place.inputs(f"prompts.source={place.folder / 'p.txt'}")


def cut_short(place: Place) -> None:
    pipeline = shutil.copytree(place.pipeline, place.folder / "cut")
    os.truncate(pipeline / "vae" / "diffusion_pytorch_model.safetensors", 1000)
    place.inputs(f"model.pretrained={pipeline}", "evaluation.measures=[]")


def scorer_cut_short(place: Place) -> None:
    file = place.folder / "spm.bin"
    torch.save({"weight": torch.zeros(64)}, file)
    os.truncate(file, file.stat().st_size - 30)
    place.scorer(checkpoint=file)


def scorer_without_weights(place: Place) -> None:
    folder = place.folder / "clip"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    place.scorer(clip=folder)


def another_models_adapter(place: Place) -> None:
    file = place.folder / "other.safetensors"
    save_file({"unet.elsewhere.lora_A.weight": torch.zeros(4, 8)}, file)
    place.inputs(f"model.init_lora={file}", "evaluation.measures=[]")


def untrained_adapter(place: Place) -> None:
    file = place.folder / "untrained.safetensors"
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_A.weight": torch.ones(4, 8), f"{layer}.lora_B.weight": torch.zeros(8, 4)}, file)
    place.inputs(f"model.init_lora={file}", "evaluation.measures=[]")


def never_committed(place: Place) -> None:
    path = place.parts().save(1)
    (path / MANIFEST).unlink()
    find_checkpoint(str(path), place.folder)


def of_other_ranks(place: Place) -> None:
    parts = place.parts()
    learner = parts.config.learner.model_copy(update={"ranks": 2})
    check_checkpoint(parts.save(1), parts.config.model_copy(update={"learner": learner}))


def branching_into_use(place: Place) -> None:
    parts = place.parts()
    path = parts.save(1)
    own = place.folder / "other"
    run = parts.config.run.model_copy(update={"dir": own})
    other = parts.config.model_copy(update={"run": run})
    parts.config = other
    parts.save(2)
    RunDir(other, str(path))


def damaged(place: Place) -> None:
    parts = place.parts()
    path = parts.save(1)
    (path / "queue.safetensors").write_bytes(b"else")
    load_checkpoint(path, parts.config, engine=parts.engine, policy=parts.policy, rank=0)


def no_room(place: Place) -> None:
    parts = place.parts()
    place.prompts("in the way", "checkpoints")
    parts.save(1)


def no_local_ray(place: Place) -> None:
    def fail(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    place.monkeypatch.setattr(connection.ray, "init", fail)
    place.monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    for switch in ("keep_to_loopback", "use_token"):  # for the life of a process
        place.monkeypatch.setattr(connection, switch, lambda: None)
    connection.connect("local")


def not_ray(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        connection.connect(f"127.0.0.1:{server.getsockname()[1]}")


def second_session(place: Place) -> None:
    context = SimpleNamespace(gcs_address="127.0.0.1:6379")
    place.monkeypatch.setattr(connection.ray, "is_initialized", lambda: True)
    place.monkeypatch.setattr(connection.ray, "get_runtime_context", lambda: context)
    connection.connect("local")


def name_taken(place: Place) -> None:
    def fail(*_: object) -> None:
        raise ValueError("The name is taken")

    place.monkeypatch.setattr(cluster, "create_mailbox", fail)
    cluster.create_actors(place.config(), resume=False)


def bad_score(place: Place) -> None:
    setup = Setup(place.pipeline)
    setup.mailbox.publish(setup.policy, 7)
    setup.scorer.scale = float("nan")
    setup.worker.run_chunk(ITEMS, None)


def bad_loss(place: Place) -> None:
    single_process_group(place.folder)
    result = UpdateResult(
        means={}, grad_norm=float("nan"), grad_rms_over_eps=float("nan"), offenders=("prompt 'x' (seed 3)",)
    )
    _refuse_nonfinite(Counters(batch=1, step=2, skipped_updates=1), result, 1)


def nothing_compiles(place: Place) -> None:
    single_process_group(place.folder)
    place.monkeypatch.setenv("CXX", "/nowhere/c++")
    place.monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(place.folder))
    engine = EngineSection(offload="cpu")
    settings = SimpleNamespace(optimizer=OptimizerSection(), engine=engine, micro_batch_pairs=1)
    module = torch.nn.Linear(2, 2)
    wrap_module(module, list(module.parameters()), settings, torch.device("cpu"))


def foreign_adapter(place: Place) -> None:
    policy = Setup(place.pipeline).policy
    policy.load_adapter({"else": torch.zeros(1)}, "0" * 64)


def stalled(alive: int) -> str | None:
    now = [0.0]
    clock = StallClock(WorkersSection().stall_timeout_sec, lambda: now[0])
    clock.look(alive=alive, produced=1, waits_for_learner=False)
    now[0] = 1000.0
    return clock.look(alive=alive, produced=1, waits_for_learner=False)


def failed_evaluation(place: Place) -> str | None:
    def work(version: AdapterVersion, state: bytes, skipped: int) -> None:
        raise FloatingPointError("red-1 is nan")

    desk = EvaluationDesk(work, 1, lambda sentence: None)
    desk(AdapterVersion(4, 2, 0, "0"), b"")
    desk.wait()
    return desk.failure


def answered(body: bytes) -> object:
    with serving(Scripted([], body)) as url:
        return RemoteScorer(url, retries=0)


def load(*overrides: str) -> Callable[[Place], object]:
    return lambda place: place.config(*overrides)


SFT = ("learner.objective.type=sft", "data.type=images")

PROVOKED: tuple[Callable[[Place], object], ...] = (
    load("learner.optimiser.lr=1"),
    load("learner.ranks=two"),
    load("learner.optimizer.lr=-1"),
    load("rollout.sampler.num_candidates=1"),
    load("noise.eta=0"),
    load("rollout.sampler.kappa=1001"),
    load("rollout.sampler.kappa=-1"),
    load("rollout.sampler.block_length=99"),
    load("queue.capacity_groups=1"),
    load("schedule.max_staleness_steps=1"),
    load("learner.objective.type=dpo"),
    load("learner.objective.type=dpo", "data.type=images", "data.path=x"),
    load("learner.objective.type=sft", "rollout.sampler.type=final_pairs", "learner.reference_at=worker"),
    load("learner.objective.type=sft", "rollout.sampler.type=final_pairs", "learner.objective.pixel.weight=-8"),
    lambda place: place.inputs(*SFT, "data.path=/nowhere"),
    lambda place: place.inputs(*SFT, f"data.path={place.prompts('[1]', 'rows.jsonl')}"),
    lambda place: place.inputs(*SFT, f"data.path={place.archive('0.png', '1.png', '0.txt')}"),
    lambda place: place.inputs(*SFT, f"data.path={place.prompts('', 'none.jsonl')}"),
    lambda place: place.inputs(*SFT, f"data.path={place.archive('0.txt')}", f"data.latent_cache={place.prompts('')}"),
    lambda place: place.inputs(f"prompts.source={place.prompts('a', 'p.csv')}"),
    lambda place: place.inputs("prompts.source=/nowhere/prompts.txt"),
    lambda place: place.inputs(f"prompts.source={place.prompts('')}"),
    lambda place: place.inputs(f"prompts.source={place.prompts(chr(34) + 'a' + chr(34) + chr(10) + '{', 'p.jsonl')}"),
    in_another_encoding,
    lambda place: place.inputs(f"prompts.source={place.prompts(chr(34) + 'a' + chr(34) + chr(10) + '7', 'p.jsonl')}"),
    lambda place: place.inputs(
        f"evaluation.prompts={place.prompts('a')}", "evaluation.num_prompts=6", "evaluation.grid_size=6"
    ),
    lambda place: place.inputs("model.pretrained=/nowhere/model", "evaluation.measures=[]"),
    lambda place: place.inputs(f"model.pretrained={place.folder}", "evaluation.measures=[]"),
    lambda place: place.inputs("model.family=sdxl", "evaluation.measures=[]"),
    lambda place: place.inputs("model.pretrained=/nowhere/sd.safetensors", "evaluation.measures=[]"),
    lambda place: place.inputs("model.lora.target_modules=[to_x]", "evaluation.measures=[]"),
    cut_short,
    scorer_cut_short,
    lambda place: place.scorer(checkpoint="/nowhere/spm.bin"),
    lambda place: place.scorer(clip="/nowhere/clip"),
    lambda place: place.scorer(clip=place.folder),
    scorer_without_weights,
    lambda place: place.inputs("model.init_lora=/nowhere/lora", "evaluation.measures=[]"),
    another_models_adapter,
    untrained_adapter,
    lambda place: overlong_note(
        ModelSection(pretrained=str(place.pipeline)), ("a red disc", "long " * 20, "赤い円 " * 20)
    ),
    lambda place: connection.connect("127.0.0.1:1"),
    not_ray,
    second_session,
    no_local_ray,
    lambda place: "\n".join(compare(placement(place.config("learner.resources.cpus=4096")), {"CPU": 2.0})),
    lambda place: "\n".join(
        compare(placement(place.config("rollout.workers.resources.gpus=1", "rollout.workers.initial=8")), {"CPU": 99.0})
    ),
    name_taken,
    in_use,
    used,
    unwritable,
    lambda place: find_checkpoint("auto", place.folder),
    never_committed,
    of_other_ranks,
    branching_into_use,
    damaged,
    no_room,
    lambda place: keep_if_best(
        place.folder, BestSection(metric="x"), AdapterVersion(0, 0, 0, "0"), b"", {"reward": 1.0}
    ),
    bad_score,
    bad_loss,
    nothing_compiles,
    foreign_adapter,
    lambda place: refused_put(make_group(latent=(4, 4, 4))),
    lambda place: refused_put(make_group(adapter_sha256="1" * 64)),
    lambda place: stalled(alive=0),
    lambda place: stalled(alive=2),
    failed_evaluation,
    lambda place: check_scores(torch.tensor([1.0, float("nan")]), ["one", "two"], "red-1"),
    lambda place: check_prompt("  ", 0, "red-1"),
    lambda place: read_weights(place.file("cut.pt", b"PK")),
    lambda place: ScoreHead({"weight": torch.zeros(1)}, "checkpoint head.pth"),
    lambda place: decode_image(place.file("torn.png", b"no picture")),
    lambda place: RemoteScorer("http://127.0.0.1:1", retries=0, timeout_sec=60.0),
    lambda place: answered(b"<html>"),
)
"""In the order of the document's rows."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("errors") / "pipeline")


def test_every_row_is_provoked():
    assert len(ROWS) == len(PROVOKED) == len(set(ROWS))


@pytest.mark.parametrize(("row", "provoke"), list(zip(ROWS, PROVOKED, strict=False)), ids=[row[:50] for row in ROWS])
def test_a_row_says_what_the_code_says(row, provoke, pipeline, tmp_path, monkeypatch):
    expected = (ValueError, ConnectionError, FloatingPointError, main.RunError)
    try:
        said = str(provoke(Place(tmp_path, pipeline, monkeypatch)))
    except expected as error:
        said = str(error)
    pattern = ".*".join(re.escape(part) for part in row.split(".."))
    assert re.search(pattern, said, flags=re.DOTALL), said


@pytest.mark.parametrize("text", ["赤い円", "красный круг", "دائرة حمراء", "🔴 " * 3])
def test_prompts_of_any_script_are_read(tmp_path, text):
    file = tmp_path / "p.txt"
    file.write_text(text, encoding="utf-8")
    assert load_prompts(str(file)) == (text.strip(),)
