"""The dashboard end to end: served on loopback, drawn in a browser, refreshed while the search writes."""

import http.client
import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from orchestrator.reports.search import dashboard
from orchestrator.reports.search.page import write_search_report
from orchestrator.reports.search.snapshot import read_search
from orchestrator.storage import object_store
from tests import searches

ROW = re.compile(r'<tr><th scope="row" class="number">(\d+)</th><td class="number (?:score|muted)">([^<]+)</td>')
WIDTH, HEIGHT = 1280, 2400


@pytest.fixture
def running_search(tmp_path: Path) -> tuple[str, list[dict[str, Any]]]:
    """A running search: five trials have ended, two are running."""
    uri, results = str(tmp_path / "search"), searches.results()
    searches.write_json(uri, "search.json", value=searches.head())
    for entry in results[:7]:
        searches.write_task_start(uri, entry)
    for entry in results[:5]:
        searches.write_task_end(uri, entry)
    return uri, results


@contextmanager
def served(app: Any) -> Iterator[int]:
    """The app on a free port of loopback, in a thread; yields the port."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with dashboard.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]  # connections wait in the socket's queue until the server takes them
        finally:
            server.should_exit = True
            thread.join()


def ask(port: int, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """Open an address in headless Chromium, let its scripts run, and return the resulting page."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium in PATH; on Debian: apt-get install chromium")

    def browse(address: str, *options: str) -> str:
        home = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
        size = [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=4000", "--enable-logging=stderr"]
        command = [str(chromium), *home, *size, "--dump-dom", *options, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        for complaint in ("Uncaught", "Refused to", "SyntaxError", "Content Security Policy"):
            assert complaint not in done.stderr
        return done.stdout

    return browse


def test_the_page_requests_only_what_is_new(running_search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "POLL_S", 0.0)
    uri, results = running_search
    with served(dashboard.app(uri)) as port:
        status, page = ask(port, "/")
        assert status == 200
        assert f'<td class="number score">{results[0]["objective"]:.4f}</td>' in page
        first = json.loads(ask(port, "/fragment")[1])
        assert first["live"]
        assert 'id="leaderboard"' in first["html"]
        assert json.loads(ask(port, f"/fragment?seen={first['stamp']}")[1]) == first | {"html": None}
        searches.write_task_end(uri, results[6])
        second = json.loads(ask(port, f"/fragment?seen={first['stamp']}")[1])
        assert second["stamp"] != first["stamp"]
        assert f'<td class="number score">{results[6]["objective"]:.4f}</td>' in second["html"]
        searches.write_json(uri, "outcome.json", value=searches.outcome(results[:5], comparison=None))
        assert json.loads(ask(port, "/fragment")[1])["live"] is False
        assert "fragment?seen" not in ask(port, "/")[1]


def test_storage_that_is_unavailable_is_reported_and_may_come_back(
    running_search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "POLL_S", 0.0)
    folder = Path(running_search[0])
    with served(dashboard.app(str(folder))) as port:
        folder.rename(folder.with_name("away"))
        status, text = ask(port, "/fragment")
        assert status == 503
        assert "no search.json there" in json.loads(text)["error"]
        folder.with_name("away").rename(folder)
        assert ask(port, "/fragment")[0] == 200


def test_requests_for_other_host_names_are_refused(running_search: Any) -> None:
    with served(dashboard.app(running_search[0])) as port:
        assert ask(port, "/", Host="elsewhere.example")[0] == 400
        assert ask(port, "/", Host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        ("127.0.0.1", ("localhost", "127.0.0.1")),
        ("localhost", ("localhost", "127.0.0.1")),
        ("127.0.0.2", ("localhost", "127.0.0.2:80")),
        ("::1", ("localhost:80", "[::1]:80")),
    ],
)
def test_every_loopback_address_refuses_other_host_names(
    running_search: Any, host: str, accepted: tuple[str, ...]
) -> None:
    """A page from elsewhere whose name resolves to this machine must not read the search."""
    with served(dashboard.app(running_search[0], hosts=dashboard.accepted_hosts(host))) as port:
        assert ask(port, "/", Host="elsewhere.example")[0] == 400
        assert [ask(port, "/", Host=name)[0] for name in accepted] == [200] * len(accepted)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "node-7"])
def test_other_machines_may_know_this_one_by_any_name(host: str) -> None:
    assert dashboard.accepted_hosts(host) == ("*",)


def test_the_command_serves_on_loopback_until_interrupted(running_search: Any) -> None:
    command = [sys.executable, "-m", "orchestrator.cli.app", "dashboard", running_search[0]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(re.fullmatch(r"dashboard http://127\.0\.0\.1:(\d+)/\n", line)[1])  # type: ignore[index]
        assert ask(port, "/fragment")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def test_an_address_that_is_taken_is_the_users_mistake(running_search: Any) -> None:
    with dashboard.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: cannot listen there"):
            dashboard.serve(running_search[0], host="127.0.0.1", port=port, ready=print)
    with pytest.raises(ValueError, match=r"no search\.json there"):
        dashboard.serve(f"{running_search[0]}/trials", host="127.0.0.1", port=0, ready=print)


def test_a_browser_draws_what_the_files_hold(tmp_path: Path, browse: Callable[..., str]) -> None:
    uri = str(tmp_path / "search")
    results = searches.write_finished_search(uri, scheduler="none", second="macs")
    with served(dashboard.app(uri)) as port:
        page = browse(f"http://127.0.0.1:{port}/", f"--screenshot={tmp_path / 'dashboard.png'}")
    rows = ROW.findall(page)
    done = sorted((entry for entry in results if entry["status"] == "done"), key=lambda entry: entry["objective"])
    assert rows[:23] == [(str(entry["number"]), f"{entry['objective']:.4f}") for entry in done]
    figures = re.findall(r'data-figure="([^"]+)"', page)
    assert len(figures) == 9
    drawn = {name: page[page.index(f'id="{name}"') : page.index(f'data-figure="{name}"')] for name in figures}
    for name, svg in drawn.items():
        assert "main-svg" in svg, name
    assert drawn["slice-0"].count('<path class="point"') == 23 + 5  # trials, and means of neighbours
    assert drawn["timeline-all"].count('<g class="point">') == len(results) + 6
    assert re.search(r">slot 1</text>", drawn["timeline-all"])
    assert drawn["parallel-all"].count('class="js-line"') == 23
    image = (tmp_path / "dashboard.png").read_bytes()
    assert struct.unpack(">II", image[16:24]) == (WIDTH, HEIGHT)
    assert len(image) > 100_000  # an empty page of this size has 15 kB


def test_an_open_page_shows_a_new_result(
    running_search: Any, browse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "POLL_S", 0.1)
    uri, results = running_search
    requested: list[str] = []
    app = dashboard.app(uri)

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        """The app; a trial of the search ends when the page has polled twice."""
        if scope["type"] == "http":
            requested.append(scope["path"])
            if requested.count("/fragment") == 2 and not object_store.exists(f"{uri}/trials/0006/result.json"):
                searches.write_task_end(uri, results[6])
        await app(scope, receive, send)

    with served(counted) as port:
        page = browse(f"http://127.0.0.1:{port}/")
    assert requested.count("/") == 1
    assert ROW.findall(page)[:3] == [
        (str(number), f"{results[number]['objective']:.4f}")
        for number in sorted((0, 2, 6), key=lambda n: results[n]["objective"])
    ]
    assert page.count("js-plotly-plot") >= 7
    assert re.search(r'id="live"[^>]*class="">live, refreshed at', page)


def test_the_static_report_is_drawn_from_its_file_alone(tmp_path: Path, browse: Callable[..., str]) -> None:
    searches.write_finished_search(str(tmp_path / "search"))
    out = tmp_path / "report.html"
    write_search_report(read_search(str(tmp_path / "search")), out)
    text = out.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)=", text)
    assert "connect-src" not in text
    assert browse(out.as_uri()).count("js-plotly-plot") >= 8
