"""A scorer as an HTTP server, for `rollout.scorer = {type: remote, url: ...}`; `reward.wire` says what is spoken.

    python -m reward.serve --scorer '{type: clip_score, clip: /models/clip}' --device cuda --port 8800

Listens on loopback unless `--host` says otherwise. There is no authentication and no TLS: whoever reaches the port can
have pictures scored, so open it to a private network only. Requests are scored one after another.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from configs import yaml_io
from configs.scorers import ScorerSection
from reward import build_scorer
from reward.base import Scorer
from reward.wire import MAX_REQUEST_BYTES, decode_request


def create_server(scorer: Scorer, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server that is bound, not yet serving; port 0 takes a free one. Raises ValueError for a scorer of latents."""
    if scorer.reads != "pixels":
        raise ValueError(f"{scorer.name} reads {scorer.reads}; only scorers that read pixels work from afar")
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(200, {"name": scorer.name, "reads": scorer.reads})
            else:
                self._answer(404, {"error": f"no {self.path} here; GET / or POST /score"})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/score":
                self._answer(404, {"error": f"no {self.path} here; GET / or POST /score"})
            elif not length.isdigit() or int(length) > MAX_REQUEST_BYTES:
                self._answer(413, {"error": f"Content-Length {length!r}: at most {MAX_REQUEST_BYTES} bytes"})
            else:
                self._answer(*self._scored(self.rfile.read(int(length))))

        def _scored(self, body: bytes) -> tuple[int, dict[str, Any]]:
            try:
                images, prompts, timesteps = decode_request(body)
                with one_at_a_time:
                    scores = scorer.score(images, prompts, timesteps)
            except ValueError as error:
                return 400, {"error": str(error)}
            except Exception as error:  # the client is told, and raises: a failed scorer is loud where it was asked
                print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                return 500, {"error": f"{type(error).__name__}: {error}"}
            return 200, {"name": scorer.name, "scores": scores.tolist()}

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a line for every request helps nobody."""

    return ThreadingHTTPServer((host, port), Handler)


def parse_scorer(text: str) -> Any:
    """The configuration section of a YAML mapping, `{type: clip_score, clip: /models/clip}`. Raises ValueError."""
    try:
        return TypeAdapter(ScorerSection).validate_python(yaml_io.parse(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"--scorer {text!r} is no scorer section of docs/configuration.md: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reward.serve", description="Serve a scorer over HTTP.")
    parser.add_argument("--scorer", required=True, metavar="YAML", help="for instance {type: clip_score, clip: DIR}")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    parser.add_argument("--port", type=int, default=8800)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    options = parser.parse_args(arguments)
    try:
        server = create_server(build_scorer(parse_scorer(options.scorer), options.device), options.host, options.port)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    with server:
        print(f"serving on http://{options.host}:{server.server_address[1]}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
