"""A worker with a real, tiny policy and hand-written queue and mailbox: weights, stamps, answers, errors."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from configs.model import LoraSection, ModelSection, NoiseSection
from configs.rollout import StepwiseSampler as StepwiseSettings
from rollout.adapter import adapter_checksum, serialise_adapter
from rollout.group_record import GroupHeader
from rollout.policy import DiffusionPolicy, load_policy
from rollout.prompts import PromptStream
from rollout.records import PreferenceGroup
from rollout.stepwise import StepwiseSampler
from rollout.weights import AdapterVersion
from rollout.worker import RolloutWorker
from tests.fakes import RedScorer
from tests.tiny import tiny_pipeline

STREAM = PromptStream(("a red disc", "a blue ring", "a green cross"), seed=4)
ITEMS = [STREAM.item(ordinal) for ordinal in range(2)]


class Mailbox:
    """Serves what the test put in."""

    def __init__(self) -> None:
        self.current: tuple[AdapterVersion, bytes] | None = None
        self.fetches = 0

    def publish(self, policy: DiffusionPolicy, batch: int, *, add: float = 0.0) -> AdapterVersion:
        state = {name: tensor + add for name, tensor in policy.adapter_state().items()}
        version = AdapterVersion(step=10 * batch, batch=batch, attempt=0, sha256=adapter_checksum(state))
        self.current = version, serialise_adapter(state)
        return version

    def fetch(self, known: AdapterVersion | None) -> tuple[AdapterVersion, bytes] | None:
        self.fetches += 1
        return None if self.current is None or self.current[0] == known else self.current


class Queue:
    """Keeps what it is given; answers as told, `stored` when not told."""

    def __init__(self) -> None:
        self.groups: list[PreferenceGroup] = []
        self.answers: list[str] = []
        self.full = threading.Event()  # set: a put waits for `room`
        self.waiting, self.room = threading.Event(), threading.Event()

    def put(self, payload: bytes, header: GroupHeader) -> str:
        group = PreferenceGroup.from_bytes(payload)
        assert group.header(len(payload)) == header
        if self.full.is_set():
            self.waiting.set()
            assert self.room.wait(20)
        self.groups.append(group)
        return self.answers.pop(0) if self.answers else "stored"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline"))


def make_policy(pipeline: Path, rank: int = 4) -> DiffusionPolicy:
    model = ModelSection(pretrained=str(pipeline), lora=LoraSection(rank=rank))
    return load_policy(model, NoiseSection(num_steps=2, guidance_scale=2.0), "cpu", seed=1)


class Setup:
    def __init__(self, pipeline: Path) -> None:
        self.policy = make_policy(pipeline)
        self.scorer = RedScorer()
        self.mailbox, self.queue = Mailbox(), Queue()
        settings = StepwiseSettings(num_candidates=2, threshold=0.0)
        sampler = StepwiseSampler(self.policy, self.scorer, settings)
        self.worker = RolloutWorker("rollout-3.1", self.policy, sampler, self.mailbox, self.queue)


@pytest.fixture
def setup(pipeline: Path) -> Setup:
    return Setup(pipeline)


def test_current_weights_are_loaded_before_the_first_chunk_and_stamped_on_its_groups(setup):
    version = setup.mailbox.publish(setup.policy, 3, add=0.02)
    assert setup.worker.adapter_sha256() != version.sha256
    report = setup.worker.run_chunk(ITEMS, required_batch=None)
    assert setup.worker.adapter_sha256() == version.sha256
    assert [group.ordinal for group in setup.queue.groups] == [0, 1]
    for group, item in zip(setup.queue.groups, ITEMS, strict=True):
        assert (group.prompt, group.seed) == (item.prompt, item.seed)
        assert (group.policy_step, group.adapter_sha256, group.worker) == (30, version.sha256, "rollout-3.1")
    assert (report.delivered, report.version, report.closed) == (2, version, False)
    # Two steps, both draw 2 candidates for each of 2 prompts. Evaluations: 2 at the start, 4 to score at t' = 1 (none
    # at t' = 0, where candidates are finished), 4 of the reference at the pairs.
    assert (report.scored_candidates, report.network_evaluations) == (8, 10)
    assert report.sampling_sec > 0


def test_weights_change_between_chunks_only_and_are_fetched_once(setup):
    first = setup.mailbox.publish(setup.policy, 0)
    setup.worker.run_chunk(ITEMS, None)
    setup.worker.run_chunk(ITEMS, None)
    second = setup.mailbox.publish(setup.policy, 1, add=0.05)
    setup.worker.run_chunk(ITEMS, None)
    assert [group.adapter_sha256 for group in setup.queue.groups] == [first.sha256] * 4 + [second.sha256] * 2
    before, after = setup.queue.groups[0], setup.queue.groups[4]
    assert not torch.equal(before.scores, after.scores)
    assert setup.mailbox.fetches == 3


def test_a_group_depends_on_its_ordinal_and_the_weights_alone(setup, pipeline):
    setup.mailbox.publish(setup.policy, 0, add=0.02)
    setup.worker.run_chunk(ITEMS, None)
    other = Setup(pipeline)
    other.mailbox.current = setup.mailbox.current
    other.worker.run_chunk(ITEMS, None)
    for mine, theirs in zip(setup.queue.groups, other.queue.groups, strict=True):
        assert mine.to_bytes() == theirs.to_bytes()


def test_without_the_right_weights_nothing_is_sampled(setup):
    assert setup.worker.run_chunk(ITEMS, None).version is None
    version = setup.mailbox.publish(setup.policy, 5)
    report = setup.worker.run_chunk(ITEMS, required_batch=4)
    assert (report.version, report.delivered) == (version, 0)
    assert setup.queue.groups == []
    assert setup.worker.run_chunk(ITEMS, required_batch=5).delivered == 2


def test_weights_that_cannot_be_applied_stop_the_worker(setup, pipeline):
    setup.mailbox.publish(make_policy(pipeline, rank=8), 0)
    with pytest.raises(ValueError, match="has shape"):
        setup.worker.run_chunk(ITEMS, None)
    version = setup.mailbox.publish(setup.policy, 1)
    claimed = AdapterVersion(step=10, batch=1, attempt=0, sha256="f" * 64)
    setup.mailbox.current = claimed, setup.mailbox.current[1]
    with pytest.raises(ValueError, match=f"checksum {version.sha256[:12]} are not the published"):
        setup.worker.run_chunk(ITEMS, None)
    assert setup.queue.groups == []


def test_a_failing_scorer_is_loud(setup):
    setup.mailbox.publish(setup.policy, 0)
    setup.scorer.scale = float("nan")
    with pytest.raises(FloatingPointError, match=rf"step 0: red-1 gave a non-finite score.*with seed {ITEMS[0].seed}"):
        setup.worker.run_chunk(ITEMS, None)
    assert setup.queue.groups == []


def test_the_queues_answers_are_reported(setup):
    setup.mailbox.publish(setup.policy, 0)
    setup.queue.answers = ["duplicate", "refused: group 1 of rollout-3.1: x_t is wrong"]
    report = setup.worker.run_chunk(ITEMS, None)
    assert (report.delivered, report.refused) == (1, ("refused: group 1 of rollout-3.1: x_t is wrong",))
    setup.queue.answers = ["superseded: too late", "dropped: too old"]
    report = setup.worker.run_chunk(ITEMS, None)
    assert (report.delivered, report.superseded) == (1, ("superseded: too late",))
    setup.queue.answers = ["closed: the run is over"] * 2
    assert setup.worker.run_chunk(ITEMS, None).closed


def test_it_says_what_it_does_while_a_full_queue_holds_it(setup):
    setup.mailbox.publish(setup.policy, 2)
    assert setup.worker.describe().startswith("loaded, no chunk yet, for ")
    setup.queue.full.set()
    thread = threading.Thread(target=setup.worker.run_chunk, args=(ITEMS, None))
    thread.start()
    assert setup.queue.waiting.wait(20)
    assert setup.worker.describe().startswith("putting group 0 of step 20, for ")
    setup.queue.room.set()
    thread.join(20)
    assert setup.worker.describe().startswith("delivered ordinals 0..1 of step 20, for ")
