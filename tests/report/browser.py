"""A headless Chromium, driven over its DevTools protocol through a pipe: nothing but the standard library.

Protocol: https://chromedevtools.github.io/devtools-protocol/ ; with --remote-debugging-pipe, JSON messages that end in
a zero byte go in through file descriptor 3 and come out of 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
_TIMEOUT_S = 60


def find_browser() -> str | None:
    """A Chromium on this machine."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Tab:
    """One page. `errors` are console errors and exceptions, `requests` every address that it asked for."""

    def __init__(self, process: subprocess.Popen[bytes], to_browser: int, from_browser: int) -> None:
        self._process, self._in, self._out = process, to_browser, from_browser
        self._number, self._buffer, self._session = 0, b"", ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def open(self, path: Path) -> float:
        """Opens a file and waits until its figures are drawn; seconds that took."""
        self.errors.clear()
        self.requests.clear()
        self._loaded = False
        start_s = time.monotonic()
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._next()
        while self.value("document.documentElement.dataset.drawnMs || ''") == "":
            assert time.monotonic() < start_s + _TIMEOUT_S, f"{path}: not drawn in time; {self.errors}"
            time.sleep(0.02)
        return time.monotonic() - start_s

    def value(self, expression: str) -> Any:
        """What JavaScript finds."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def size(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """The window, the reader's paper, and whether a finger points."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)

    def picture(self, path: Path, *, whole_page: bool = False) -> None:
        """A screenshot, PNG."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=whole_page)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """The page as it is printed."""
        self.send("Emulation.setEmulatedMedia", media="")
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._out], [], [], _TIMEOUT_S)
            data = os.read(self._out, 1 << 20) if ready else b""
            assert data, f"the browser said nothing for {_TIMEOUT_S} s or ended (exit code {self._process.poll()})"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:200])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(params["args"])[:2000])


@contextmanager
def browser(executable: str, profile: Path) -> Iterator[Tab]:
    """Starts a browser with an empty profile and gives one tab; ends it afterwards, its helper processes too."""
    from_here, to_browser = os.pipe()
    from_browser, to_here = os.pipe()
    # Above 4, so that putting one end where the browser looks for it does not close the other.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (from_here, to_here)]

    def place() -> None:
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    process = subprocess.Popen(
        [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=place,
        pass_fds=(3, 4),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for end in (from_here, to_here, *ends):
        os.close(end)
    try:
        yield Tab(process, to_browser, from_browser)
    finally:
        with suppress(ProcessLookupError):  # it may have ended already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        os.close(to_browser)
        os.close(from_browser)
