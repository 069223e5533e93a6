"""Real HTTP servers on loopback that answer as told: rightly, wrongly, slowly, byte by byte, by half, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

DRIP = "drip"
CUT = b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"scores"'
Answer = tuple[int, bytes] | bytes | str | None


class Scripted(ThreadingHTTPServer):
    """Answers GET with a name; POST with the next of `answers`: a status and a body, not at all where it is None, or a
    text sent as it is where it is bytes; for DRIP byte by byte and without an end, for CUT by half."""

    daemon_threads = True

    def __init__(self, answers: list[Answer], description: bytes | None = None) -> None:
        self.asked, self.release = 0, threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, description or b'{"name": "scripted", "reads": "pixels"}')

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                answer = answers[min(server.asked, len(answers) - 1)]
                server.asked += 1
                if answer is None:
                    server.release.wait(60)
                elif answer == DRIP:
                    self.drip()
                elif isinstance(answer, bytes):
                    self.wfile.write(answer)
                else:
                    self.reply(*answer)

            def drip(self) -> None:
                """Never silent for long, and never done."""
                with suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                    while not server.release.wait(0.02):
                        self.wfile.write(b" ")

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@contextmanager
def serving(server: HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
