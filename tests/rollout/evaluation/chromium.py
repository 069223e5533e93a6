"""A real headless Chromium, driven over its DevTools pipe (JSON messages ended by a zero byte on descriptors 3 and 4).

Needs nothing beside the browser: no driver, no port.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_SEC = 120.0


def find_chromium() -> str | None:
    """The browser's program, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page of one browser with a profile of its own. Use as a context manager."""

    def __init__(self, program: str, profile: Path, downloads: Path) -> None:
        self._program, self._profile, self._downloads = program, profile, downloads
        self._number = 0
        self._buffer = b""
        self._session: str | None = None

    def __enter__(self) -> Browser:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # The shell gives Chromium the two ends under the numbers it expects, whatever they are here.
        wiring = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", wiring, "bash", self._program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(info["targetId"] for info in targets if info["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(timeout=30)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command; its result. Raises RuntimeError for an error, TimeoutError when none comes."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, page: Path | str) -> None:
        """A file, or an address."""
        self.call("Page.navigate", url=page.resolve().as_uri() if isinstance(page, Path) else page)
        self.until("document.readyState === 'complete' && location.protocol !== 'about:'")

    def reload(self) -> None:
        """As a person reloads: in the same process, which another navigation to the page need not be."""
        self.run("window.isOld = true")
        self.call("Page.reload")
        self.until("window.isOld === undefined && document.readyState === 'complete'")

    def allow_downloads(self) -> None:
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self._downloads))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(condition)
            select.select([], [], [], 0.05)

    def click(self, selector: str) -> None:
        """A real mouse click in the middle of the element."""
        where = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        x, y = self.run(where)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, key: str) -> None:
        """A real key press: one character, or a named key such as ArrowRight."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def insert(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, file: Path, width: int, height: int, *, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_SEC
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {TIMEOUT_SEC} s")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError(f"the browser ended (status {self._process.wait(timeout=30)})")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
