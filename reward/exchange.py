"""One HTTP request with one deadline: over in time, answered or not, however slowly bytes come.

A socket's own timeout bounds each of its operations, so that a server which sends a byte now and then is never late.
Here another thread talks, and whoever asked stops waiting at the deadline. No proxy, no redirect.
"""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import threading
from urllib.parse import urlsplit


def exchange(url: str, body: bytes | None, timeout_sec: float, limit_bytes: int) -> tuple[int, bytes]:
    """Status and content of the answer to a GET, or to a POST of JSON where there is a `body`.

    At most `limit_bytes` + 1 bytes are read: more than `limit_bytes` is an answer that was too long.

    Raises:
        TimeoutError: the answer is not complete after `timeout_sec`.
        OSError, http.client.HTTPException: no connection, one that breaks off, or something that is not HTTP.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_sec)
    outcome: queue.SimpleQueue[tuple[int, bytes] | Exception] = queue.SimpleQueue()
    too_late = threading.Event()

    def talk() -> None:
        try:
            connection.connect()
            if not too_late.is_set():  # else nobody could cut a connection that did not exist yet
                outcome.put(_answer(connection, parts.path or "/", body, limit_bytes))
        except Exception as error:  # whatever it is, it is raised where the question was asked
            outcome.put(error)
        finally:
            connection.close()

    threading.Thread(target=talk, name=f"ask {parts.hostname}", daemon=True).start()
    try:
        found = outcome.get(timeout=timeout_sec)
    except queue.Empty:
        too_late.set()
        _cut(connection)
        found = TimeoutError()
    if isinstance(found, TimeoutError):
        raise TimeoutError(f"no complete answer within {timeout_sec:g} s")
    if isinstance(found, Exception):
        raise found
    return found


def _answer(
    connection: http.client.HTTPConnection, path: str, body: bytes | None, limit_bytes: int
) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request("GET" if body is None else "POST", path, body=body, headers=headers)
    answer = connection.getresponse()
    data = answer.read(limit_bytes + 1)
    if answer.length and len(data) <= limit_bytes:  # http.client itself does not mind
        raise http.client.IncompleteRead(data, answer.length)
    return answer.status, data


def _cut(connection: http.client.HTTPConnection) -> None:
    """End the other thread's wait: its next operation on the socket fails."""
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):  # over in this very moment
            sock.shutdown(socket.SHUT_RDWR)
