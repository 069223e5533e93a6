"""The remote scorer against real HTTP servers on loopback: the project's own, and ones that misbehave."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.scorers import RemoteScorer as Settings
from reward import build_scorer
from reward.frozen import check_scores
from reward.remote import RemoteScorer
from reward.serve import create_server, main, parse_scorer
from reward.wire import MAX_ANSWER_BYTES, decode_request, decode_scores, encode_request
from tests.http_servers import CUT, DRIP, Answer, Scripted, serving
from tests.reward.test_composed_scorers import HERE, Channel

ROOT = Path(__file__).parents[2]
IMAGES = torch.tensor([-1.0, -0.2, 0.6, 1.0, 0.0]).view(5, 1, 1, 1).expand(5, 3, 4, 6)
PROMPTS = ["a", "кот", "漢字", "🐈", ""]
CALL = (IMAGES, PROMPTS, torch.zeros(5, dtype=torch.int64))


class Loud(Channel):
    """Fails for one prompt; not finite for another."""

    def score(self, images: torch.Tensor, prompts: Any, timesteps: torch.Tensor) -> torch.Tensor:
        if "broken" in prompts:
            raise RuntimeError("the lens is broken")
        scores = super().score(images, prompts, timesteps)
        return check_scores(scores / (0.0 if "endless" in prompts else 1.0), prompts, self.name)


def test_scores_are_the_servers_on_eight_bits() -> None:
    scorer = Channel(0)
    with serving(create_server(scorer)) as url:
        remote = build_scorer(Settings(url=url + "/", batch_size=2))
        scores = remote.score(*CALL)
    assert remote.name == "remote-channel0-png8" and remote.reads == "pixels"
    assert scores.dtype == torch.float32
    levels = ((IMAGES / 2 + 0.5) * 255).round() / 127.5 - 1
    torch.testing.assert_close(scores, scorer.score(levels, *CALL[1:]), rtol=0, atol=1e-6)


def test_the_server_says_what_is_wrong() -> None:
    with serving(create_server(Loud(0))) as url:
        remote = RemoteScorer(url, retries=1, pause=lambda seconds: None)
        with pytest.raises(ConnectionError, match=r"failed 2 times .*status 500: .*RuntimeError: the lens is broken"):
            remote.score(IMAGES[:1], ["broken"], CALL[2][:1])
        with pytest.raises(ConnectionError, match=r"status 500: .*channel0 gives .*inf in row 0, prompt 'endless'"):
            remote.score(IMAGES[:1], ["endless"], CALL[2][:1])
        with pytest.raises(ValueError, match="1 prompts for 2 images"):
            remote.score(IMAGES[:2], ["a"], CALL[2][:2])
        with pytest.raises(ValueError, match="status 404"):
            RemoteScorer(url + "/elsewhere", retries=0)
    with pytest.raises(ValueError, match="reads latent"):
        create_server(Channel(0, reads="latent"))


def scores(*values: float) -> tuple[int, bytes]:
    return 200, json.dumps({"scores": values}).encode()


def ask(
    answers: list[Answer], *, first_timeout_sec: float | None = None, **settings: Any
) -> tuple[Any, int, list[float]]:
    """Scores two pictures; returns scores or error, the number of requests, the pauses made.

    `first_timeout_sec` holds until the first pause, so that only an answer that never comes is too late.
    """
    pauses: list[float] = []
    server = Scripted(answers)
    with serving(server) as url:
        remote = RemoteScorer(url, pause=pauses.append, timeout_sec=60.0, **settings)
        if first_timeout_sec is not None:
            remote._timeout_sec = first_timeout_sec
            remote._pause = lambda seconds: (pauses.append(seconds), setattr(remote, "_timeout_sec", 60.0))
        try:
            found: Any = remote.score(IMAGES[:2], ["a", "b"], CALL[2][:2]).tolist()
        except (ValueError, ConnectionError) as error:
            found = error
        server.release.set()
    return found, server.asked, pauses


def test_server_errors_and_timeouts_are_tried_again() -> None:
    assert ask([(503, b"busy"), (500, b"busy"), scores(1, 2)]) == ([1.0, 2.0], 3, [0.5, 1.0])
    assert ask([None, scores(1, 2)], first_timeout_sec=0.2, backoff_sec=0.25) == ([1.0, 2.0], 2, [0.25])
    assert ask([CUT, b"220 mail\r\n", scores(1, 2)]) == ([1.0, 2.0], 3, [0.5, 1.0])


def test_a_server_that_drips_is_too_slow_as_a_whole() -> None:
    """No operation on the socket is ever late; the request is."""
    assert ask([DRIP, scores(1, 2)], first_timeout_sec=0.3) == ([1.0, 2.0], 2, [0.5])
    server = Scripted([DRIP])
    with serving(server) as url:
        remote = RemoteScorer(url, retries=0)
        remote._timeout_sec = 0.3
        with pytest.raises(ConnectionError, match=r"failed 1 times .*no complete answer within 0\.3 s"):
            remote.score(IMAGES[:1], ["a"], CALL[2][:1])
        for thread in [thread for thread in threading.enumerate() if thread.name.startswith("ask ")]:
            thread.join(60)
            assert not thread.is_alive(), "none is left to read for ever"
        server.release.set()


def test_a_server_that_stays_slow_or_broken_fails_the_group() -> None:
    error, asked, pauses = ask([None], first_timeout_sec=0.2, retries=0)
    assert isinstance(error, ConnectionError) and asked == 1 and pauses == []
    assert (
        "failed 1 times (timeout 0.2 s), last: " in str(error)
        and "0.2 s" in str(error)
        and "http://127.0.0.1:" in str(error)
    )
    error, asked, _ = ask([(500, b"no memory")], retries=2)
    assert isinstance(error, ConnectionError) and asked == 3 and "status 500: no memory" in str(error)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (scores(1), "1 scores for 2 pictures"),
        (scores(1, 2, 3), "3 scores for 2 pictures"),
        ((200, b'{"scores": [1, NaN]}'), r"scores\[1\] is nan; a finite number is wanted"),
        ((200, b'{"scores": [1, Infinity]}'), r"scores\[1\] is inf"),
        ((200, b'{"scores": ["1", 2]}'), r"scores\[0\] is '1'"),
        ((200, b'{"scores": [true, 2]}'), r"scores\[0\] is True"),
        ((200, b'{"scores": [null, 2]}'), r"scores\[0\] is None"),
        ((200, b'{"score": [1, 2]}'), "scores is NoneType; a list is wanted"),
        ((200, b"[1, 2]"), "a JSON list; an object is wanted"),
        ((200, b"<html>login</html>"), "not JSON .*begins b'<html>login"),
        ((200, b"\xff\xfe"), "not JSON"),
        ((200, b""), "not JSON"),
        ((400, b"images[0] is not base64"), r"refused the request, status 400: images\[0\]"),
        ((302, b"elsewhere"), "refused the request, status 302"),
        ((200, b" " * (MAX_ANSWER_BYTES + 1)), "the answer is longer than"),
    ],
)
def test_nonsense_is_refused_at_once(answer: tuple[int, bytes], message: str) -> None:
    error, asked, pauses = ask([answer])
    assert isinstance(error, ValueError) and asked == 1 and pauses == []
    with pytest.raises(ValueError, match=message):
        raise error
    assert "remote scorer http://127.0.0.1:" in str(error)


def test_a_server_that_is_down_is_noticed_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=f"{url}/ failed 3 times .*refused.*reward.serve"):
        build_scorer(Settings(url=url, retries=2, backoff_sec=0.0))


@pytest.mark.parametrize("description", [b"{}", b'{"name": 3}', b'{"name": "x", "reads": "latent"}', b"pong"])
def test_a_server_of_something_else_is_noticed_at_the_start(description: bytes) -> None:
    with serving(Scripted([], description)) as url, pytest.raises(ValueError, match="the answer makes no sense"):
        RemoteScorer(url)


def test_the_wire_names_key_and_row() -> None:
    images, prompts, timesteps = decode_request(encode_request(*CALL))
    assert images.shape == (5, 3, 4, 6) and prompts == PROMPTS and timesteps.tolist() == [0] * 5
    good = json.loads(encode_request(IMAGES[:2], ["a", "b"], CALL[2][:2]))
    other = json.loads(encode_request(torch.zeros(1, 3, 2, 2), ["a"], CALL[2][:1]))["images"]
    changes: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda v: v.update(prompts=["a"]), "2 images, 1 prompts, 2 timesteps"),
        (lambda v: v.update(prompts=["a", 3]), r"prompts\[1\] is 3"),
        (lambda v: v.update(timesteps=[0, 0.5]), r"timesteps\[1\] is 0.5"),
        (lambda v: v.update(images=[v["images"][0], "%%%"]), r"images\[1\] is not base64"),
        (lambda v: v.update(images=[v["images"][0], v["images"][1][:40]]), r"images\[1\] cannot be decoded"),
        (lambda v: v.update(images=[v["images"][0], None]), r"images\[1\] is not base64 text"),
        (lambda v: v.update(images=[v["images"][0], *other]), "images differ in size"),
        (lambda v: v.pop("images"), "images is NoneType"),
    ]
    for change, message in changes:
        value = json.loads(json.dumps(good))
        change(value)
        with pytest.raises(ValueError, match=message):
            decode_request(json.dumps(value).encode())
    assert decode_scores(b'{"scores": [1, 2.5]}', 2) == [1.0, 2.5]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--scorer", "{type: nothing}"]) == 1
    assert "is no scorer section" in capsys.readouterr().err
    section = f"{{type: import, target: '{HERE}:Channel', options: {{channel: 1}}}}"
    assert parse_scorer(section).options == {"channel": 1}
    process = subprocess.Popen(
        [sys.executable, "-m", "reward.serve", "--port", "0", "--scorer", section],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:"), line
        assert RemoteScorer(line.split()[-1]).score(*CALL).tolist() == pytest.approx(
            IMAGES[:, 1, 0, 0].tolist(), abs=0.01
        )
    finally:
        process.kill()
        process.wait(timeout=30)
