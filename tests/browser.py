"""A real browser without a screen, driven over Chromium's DevTools protocol: for pages that do something."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.processes import killed_at_the_end

STARTS_S = ANSWERS_S = 90.0
# nothing of Chromium's own leaves the machine
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"),
    *("--disable-component-update", "--no-first-run", "--remote-debugging-port=0"),
)


class Tab:
    """One page in a browser of its own."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.requested: list[str] = []  # every address that the page has loaded or asked
        self.errors: list[str] = []  # uncaught, or written to the console
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol; events that come meanwhile are noted."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWERS_S))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._note(message)

    def open(self, url: str, *, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Until the expression is true in the page; fails after a minute and a half."""
        deadline = time.monotonic() + ANSWERS_S
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.1)

    def choose_file(self, selector: str, path: Path) -> None:
        """As a user chooses a file in an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path: Path) -> None:
        """The whole page, as a PNG."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])


@contextmanager
def browser_tab(folder: Path) -> Iterator[Tab]:
    """A tab of a Chromium whose files are in `folder`, a new one; skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium in PATH; on Debian: apt-get install chromium")
    client = pytest.importorskip("websockets.sync.client")
    command = [program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with killed_at_the_end(process), client.connect(_page_address(folder, process), max_size=None) as socket:
        yield Tab(socket)


def _page_address(folder: Path, process: subprocess.Popen[Any]) -> str:
    """The DevTools address of the one tab, once Chromium has written down its port."""
    import urllib.request

    deadline, ports = time.monotonic() + STARTS_S, folder / "DevToolsActivePort"
    while not (ports.is_file() and ports.read_text().count("\n")):
        assert process.poll() is None, "Chromium ended before it listened"
        assert time.monotonic() < deadline, "Chromium does not listen"
        time.sleep(0.1)
    port = ports.read_text().splitlines()[0]
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [each for each in json.load(answer) if each["type"] == "page"]
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        assert time.monotonic() < deadline, "Chromium has no tab"
        time.sleep(0.1)
