"""A scorer in another process or on another machine, over HTTP. `reward.wire` says what is sent; no proxy is used.

Timeouts, refused or broken connections and server errors are tried again, with pauses that double; an answer that is
wrong (not JSON, of the wrong length, NaN, a status other than 200 and 5xx) is not. Either way a failure raises: the
group stops, nothing is scored 0. The timeout is that of a whole attempt: a request of `batch_size` pictures lasts at
most (retries + 1) · timeout + all pauses, whatever the server does. Pictures travel at 8 bits, which the name says.

Known taste: the remote scorer's, whose name is part of this one's.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from reward.base import Reads, check_inputs
from reward.exchange import exchange
from reward.wire import MAX_ANSWER_BYTES, decode_description, decode_scores, encode_request

T = TypeVar("T")
_OK, _SERVER_ERRORS = 200, 500
_QUOTED_BYTES = 500


class RemoteScorer:
    """`Scorer`; asks the server for its name first, so that one which is down is noticed before sampling starts."""

    reads: Reads = "pixels"

    def __init__(
        self,
        url: str,
        *,
        timeout_sec: float = 60.0,
        retries: int = 3,
        backoff_sec: float = 0.5,
        batch_size: int = 16,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises ConnectionError where no answer comes, ValueError for one that makes no sense; both name the URL."""
        self._url, self._timeout_sec, self._batch_size = url.rstrip("/"), timeout_sec, batch_size
        self._pauses_sec = [backoff_sec * 2**attempt for attempt in range(retries)]
        self._pause = pause
        self._device = torch.device("cpu")
        self.name = f"remote-{self._understood('/', None, decode_description)}-png8"

    def to(self, device: torch.device | str) -> RemoteScorer:
        """Where scores are put; returns itself."""
        self._device = torch.device(device)
        return self

    def score(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        """float32 [B]. Raises ConnectionError after the last attempt, ValueError for a bad request or a bad answer."""
        check_inputs(images, prompts, timesteps)
        scores: list[float] = []
        for start in range(0, len(prompts), self._batch_size):
            part = slice(start, start + self._batch_size)
            body = encode_request(images[part], prompts[part], timesteps[part])
            count = len(prompts[part])
            scores += self._understood("/score", body, partial(decode_scores, count=count))
        return torch.tensor(scores, dtype=torch.float32, device=self._device)

    def _understood(self, path: str, body: bytes | None, decode: Callable[[bytes], T]) -> T:
        answer = self._ask(path, body)
        try:
            return decode(answer)
        except ValueError as error:
            raise ValueError(f"remote scorer {self._url}{path}: the answer makes no sense: {error}") from error

    def _ask(self, path: str, body: bytes | None) -> bytes:
        failures: list[str] = []
        for pause_sec in [*self._pauses_sec, None]:
            try:
                status, data = exchange(self._url + path, body, self._timeout_sec, MAX_ANSWER_BYTES)
            except (OSError, http.client.HTTPException) as error:  # timeouts are OSErrors
                failures.append(str(error) or type(error).__name__)
            else:
                if status == _OK:
                    return self._within_limit(path, data)
                reason = f"status {status}: {data[:_QUOTED_BYTES].decode(errors='replace').strip()}"
                if status < _SERVER_ERRORS:
                    raise ValueError(f"remote scorer {self._url}{path} refused the request, {reason}")
                failures.append(reason)
            if pause_sec is not None:
                self._pause(pause_sec)
        raise ConnectionError(
            f"remote scorer {self._url}{path} failed {len(failures)} times (timeout {self._timeout_sec:g} s), "
            f"last: {failures[-1]}. Is `python -m reward.serve` running there?"
        )

    def _within_limit(self, path: str, data: bytes) -> bytes:
        if len(data) > MAX_ANSWER_BYTES:
            raise ValueError(f"remote scorer {self._url}{path}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
        return data
