"""`antiphon serve` as its clients see it: a real Ray Serve, uploads over HTTP, a browser."""

import io
import json
import platform
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

from orchestrator.artifacts.tag import tag_files
from tests.browser import browser_tab
from tests.official import waveform
from tests.serving import RATE, TaggerServer, serving
from tests.uploads import Reply, ask, ask_at_once, form
from workloads.runtime.cpu import memory_variables

MAX_SECONDS, MAX_MB = 20, 1
LIMITS = ("--max-seconds", str(MAX_SECONDS), "--max-mb", str(MAX_MB), "--batch-seconds", "2")
# few requests at once, so that a test can have too many
ROOM = ("--ongoing", "4", "--queued", "8")
REPORTED_S = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaggerServer]:
    with serving(tmp_path_factory.mktemp("server"), *LIMITS, *ROOM) as running:
        yield running


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Shorter than a window, longer than a batch, at another rate, beyond full scale, compressed."""
    folder, (x_T, y_T) = tmp_path_factory.mktemp("sounds"), waveform(8.0, RATE).numpy()
    paths = [folder / name for name in ("short.wav", "long.wav", "other-rate.wav", "loud.wav", "music.ogg")]
    soundfile.write(paths[0], x_T[:9000], RATE)
    soundfile.write(paths[1], y_T[: 7 * RATE + 100], RATE)
    soundfile.write(paths[2], x_T[RATE : 3 * RATE], 22_050)
    soundfile.write(paths[3], 9 * y_T[RATE : 3 * RATE], RATE, subtype="FLOAT")
    soundfile.write(paths[4], x_T[2 * RATE : 5 * RATE], RATE)
    return paths


def wav(seconds: float, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate)), rate, format="WAV")
    return file.getvalue()


def probabilities(reply: Reply) -> dict[str, float]:
    assert reply.status == 200, reply
    return {each["tag"]: each["probability"] for each in reply.json["tags"]}


@pytest.mark.parametrize("model", ["vit", "frames"])
def test_answers_equal_those_of_antiphon_tag(server: TaggerServer, sounds: list[Path], model: str) -> None:
    names = [str(path) for path in sounds]
    expected = tag_files(str(server.taggers[model]), names, top=3, events_above=0.5 if model == "frames" else None)
    assert not expected.broken
    for path, name in zip(sounds, names, strict=True):
        reply = ask(f"{server.url}/tag?model={model}&top=3", path)
        assert probabilities(reply) == pytest.approx(dict(expected.tags[name]), abs=1e-5)
        assert reply.json["notes"] == list(expected.notes.get(name, ()))
        if model == "frames":
            events = ask(f"{server.url}/events?model=frames&threshold=0.5", path).json["events"]
            own = [(event.tag, event.onset, event.offset) for event in expected.events[name]]
            assert [(event["tag"], event["onset"], event["offset"]) for event in events] == own
    assert any(expected.events.values()) == (model == "frames")


def test_sounds_heard_together_are_not_confused(server: TaggerServer, sounds: list[Path]) -> None:
    """By four clients at once, who share batches: tags of both taggers, and events, of sounds in one piece and more."""
    targets = ("tag?model=vit&top=3", "tag?model=frames&top=3", "events?model=frames&threshold=0.5")
    requests = [(f"{server.url}/{target}", path.read_bytes()) for path in sounds for target in targets]
    alone = [ask(*request) for request in requests]
    assert {reply.status for reply in alone} == {200}
    assert len({reply.text for reply in alone}) == len(requests)
    together = ask_at_once([*requests, *reversed(requests)], clients=4)
    for reply, expected in zip(together, [*alone, *reversed(alone)], strict=True):
        assert reply.status == 200, reply
        found, right = ([*rows(each)] for each in (reply, expected))
        assert [row[:-1] for row in found] == [row[:-1] for row in right]
        assert [row[-1] for row in found] == pytest.approx([row[-1] for row in right], abs=1e-4)


def rows(reply: Reply) -> Iterator[tuple[Any, ...]]:
    """The tags of an answer by name, or its events; the probability last."""
    for each in sorted(reply.json["tags"], key=lambda tag: tag["tag"]) if "tags" in reply.json else ():
        yield each["tag"], each["probability"]
    for each in reply.json.get("events", ()):
        yield each["tag"], each["onset"], each["offset"], each["probability"]


def test_an_answer_along_time(server: TaggerServer, sounds: list[Path]) -> None:
    by_frames = ask(f"{server.url}/tag?model=frames&timeline=true", sounds[1]).json["timeline"]
    assert len(by_frames["step_begins"]) == 176  # 7.00625 s in frames of 40 ms
    assert by_frames["step_ends"][-1] == pytest.approx(7.006, abs=1e-3)
    by_windows = ask(f"{server.url}/tag?model=vit&timeline=true&top=2", sounds[1]).json["timeline"]
    assert by_windows["step_begins"] == [*range(7), 6.006]
    assert len(by_windows["probabilities"]) == 2
    assert {len(values) for values in by_windows["probabilities"].values()} == {8}
    assert max(by_windows["peaks"]) == pytest.approx(float(np.abs(soundfile.read(sounds[1])[0]).max()), abs=2e-3)
    assert ask(f"{server.url}/tag", sounds[1]).json["timeline"] is None


@pytest.mark.parametrize(
    ("target", "content", "status", "detail"),
    [
        ("/tag", b"no sound at all", 422, "cannot be decoded (Format not recognised.)"),
        ("/tag", wav(2.0)[:-20_000], 422, "cut short: 22000 of 32000 samples"),
        ("/tag", wav(MAX_SECONDS + 1, 8000), 413, "lasts 21.0 s, longer than 20 s; cut it into parts"),
        ("/tag", bytes(1_100_000), 413, "the upload is larger than 1 MB; cut the sound into parts, or send it as FLAC"),
        ("/tag?model=dog", wav(1.0), 404, "model 'dog': no such model here; there are vit, frames"),
        ("/events?model=frames&threshold=1", wav(1.0), 422, "threshold = 1: must be between 0 and 1"),
        ("/tag?top=0", wav(1.0), 422, "top = '0': should be greater than or equal to 1"),
        ("/events?threshold=half", wav(1.0), 422, "threshold = 'half': should be a valid number"),
        ("/tag?modle=vit", wav(1.0), 422, "'modle': no such parameter here; there are url, model, top, timeline"),
        ("/tag?top=1&top=2", wav(1.0), 422, "'top': is sent twice; send one sound, and each parameter once"),
        ("/tag", None, 422, "send one sound: as the form's field file, or its address as url"),
        ("/tag?url=http://127.0.0.1/x", None, 403, "url: this server takes uploads only"),
    ],
)
def test_a_mistake_is_an_answer_that_says_what_is_wrong(
    server: TaggerServer, target: str, content: bytes | None, status: int, detail: str
) -> None:
    reply = ask(server.url + target, content, method="POST")
    assert reply.status == status
    assert detail in reply.json["detail"]
    assert "\n" not in reply.json["detail"]


@pytest.mark.parametrize(
    ("method", "target", "status", "detail"),
    [
        (
            "GET",
            "/tags",
            404,
            "'/tags': no such address here; there are GET /openapi.json, GET /, GET",
        ),
        ("GET", "/tag", 405, "/tag: takes POST"),
        ("DELETE", "/healthz", 405, "/healthz: takes GET"),
    ],
)
def test_an_address_that_there_is_not_is_a_mistake_like_others(
    server: TaggerServer, method: str, target: str, status: int, detail: str
) -> None:
    reply = ask(server.url + target, method=method)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert reply.json["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ([("file", "a.wav"), ("model", "")], "the form's field 'model' is not read: the sound is its field file, and"),
        (
            [("files", "a.wav")],
            "the form's field 'files' is not read: the sound is its field file, and parameters belong",
        ),
        ([("file", "a.wav"), ("file", "b.wav")], "'file': is sent twice; send one sound"),
        ([("file", "")], "the form's field file must hold a file; with curl: -F file=@clip.wav"),
    ],
)
def test_what_a_form_holds_besides_one_file_is_not_ignored(
    server: TaggerServer, fields: list[tuple[str, str]], detail: str
) -> None:
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"'.encode()
        + (f'; filename="{file}"\r\n\r\n'.encode() + wav(1.0) if file else b"\r\n\r\nframes")
        for name, file in fields
    ]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{server.url}/tag", b"\r\n".join([*parts, b"--x--\r\n"]), headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 422
    assert json.loads(refused.value.read())["detail"].startswith(detail)


def test_events_are_refused_of_a_tagger_without_them(server: TaggerServer) -> None:
    reply = ask(f"{server.url}/events?model=vit", wav(1.0))
    assert reply.status == 422
    assert reply.json["detail"].startswith("model 'vit' (vit, labels multi) does not say when tags sound; use one with")


def test_an_upload_that_does_not_say_its_size_is_cut_off(server: TaggerServer) -> None:
    body, headers = form(bytes(3_000_000))
    chunks = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    request = urllib.request.Request(f"{server.url}/tag", chunks, {"Content-Type": headers["Content-Type"]})
    with pytest.raises(urllib.error.URLError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert getattr(refused.value, "code", 413) == 413  # or the connection has ended before all was sent


def test_only_this_machines_own_names_are_answered(server: TaggerServer) -> None:
    assert ask(f"{server.url}/healthz").status == 200
    refused = ask(f"{server.url}/healthz", Host="evil.example")
    assert (refused.status, refused.json) == (400, {"detail": "Invalid host header"})
    listening = {each.laddr.ip for each in _connections(server) if f":{each.laddr.port}" in server.url}
    assert listening == {"127.0.0.1"}


def _connections(server: TaggerServer) -> list[Any]:
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    return [each for process in family for each in process.net_connections() if each.status == psutil.CONN_LISTEN]


def test_the_interface_is_described(server: TaggerServer) -> None:
    interface = ask(f"{server.url}/openapi.json").json
    assert {*interface["paths"]} == {"/tag", "/events", "/healthz", "/models"}
    assert {"200", "404", "413", "422", "503"} <= {*interface["paths"]["/tag"]["post"]["responses"]}
    facts = ask(f"{server.url}/models").json
    assert (facts["max_seconds"], facts["max_bytes"]) == (MAX_SECONDS, MAX_MB * 1_000_000)
    assert [(model["name"], model["events"]) for model in facts["models"]] == [("vit", False), ("frames", True)]
    assert ask(f"{server.url}/healthz").json == {"status": "ok", "models": ["vit", "frames"]}


def test_too_many_requests_are_told_when_to_come_again(server: TaggerServer) -> None:
    """Four are worked on and eight wait; of forty at once some are refused, and the others get their answer."""
    replies: list[Reply] = []
    while not any(reply.status == 503 for reply in replies):
        assert len(replies) < 400, "nobody was refused"
        replies += ask_at_once([(f"{server.url}/tag", wav(MAX_SECONDS - 1))] * 40, clients=40)
    assert {reply.status for reply in replies} == {200, 503}
    refused = next(reply for reply in replies if reply.status == 503)
    assert refused.headers["retry-after"] == "1"
    assert refused.json["detail"]
    assert ask(f"{server.url}/tag", wav(1.0)).status == 200


def test_what_was_heard_is_counted(server: TaggerServer) -> None:
    """The node's agent reports every few seconds: asked until it has the sound that this test sends."""
    before, deadline = _counted(server, "sound_seconds"), time.monotonic() + REPORTED_S
    assert ask(f"{server.url}/tag", wav(19.0)).status == 200
    while _counted(server, "sound_seconds") < before + 19.0 - 1e-6:
        assert time.monotonic() < deadline, "the agent does not report it"
        time.sleep(0.5)
    assert _counted(server, "forwards") > 0
    assert _counted(server, "forward_seconds") > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are glibc's")
def test_replicas_keep_freed_memory(server: TaggerServer) -> None:
    """From their start: glibc reads the variables once."""
    (replica,) = server.replicas()
    environment = replica.environ()
    assert {name: environment.get(name) for name in memory_variables()} == memory_variables()


def _counted(server: TaggerServer, what: str) -> float:
    with urllib.request.urlopen(server.metrics) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"ray_antiphon_serve_{what}_total{{"))


@pytest.mark.slow
def test_the_page_shows_a_sound_that_is_chosen(server: TaggerServer, esc10: Path, tmp_path: Path) -> None:
    x_T, rate = soundfile.read(esc10 / "audio" / "1-100032-A.ogg")
    file = tmp_path / "a dog.wav"
    soundfile.write(file, x_T, rate)
    expected = tag_files(str(server.taggers["frames"]), [str(file)], top=3, events_above=0.5)
    (tmp_path / "browser").mkdir()
    with browser_tab(tmp_path / "browser") as tab:
        for width in (1280, 390):
            tab.open(f"{server.url}/", width=width, height=900)
            tab.wait_for("document.querySelectorAll('#model option').length === 2")
            tab.evaluate("model.value = 'frames'; model.dispatchEvent(new Event('change'))")
            tab.choose_file("#file", file)
            tab.wait_for("!document.querySelector('#result').hidden")
            lanes = tab.evaluate("[...document.querySelectorAll('.lane .name')].map(e => e.innerText.split('\\n'))")
            assert lanes == [[tag, f"{value:.3f}"] for tag, value in expected.tags[str(file)]]
            rows = tab.evaluate("document.querySelectorAll('#event-rows tr').length")
            assert rows == len(expected.events[str(file)]) > 0
            assert _is_drawn(tab)
            assert tab.evaluate("document.documentElement.scrollWidth") == width
        tab.choose_file("#file", Path(__file__))
        tab.wait_for("!document.querySelector('#problem').hidden")
        assert tab.evaluate("problem.innerText") == "cannot be decoded (Format not recognised.)"
        assert not [url for url in tab.requested if not url.startswith((server.url, f"blob:{server.url}", "data:"))]
    assert not [error for error in tab.errors if "422" not in error]


def _is_drawn(tab: Any) -> bool:
    """Whether the waveform is there: more than a line, less than a full block."""
    count = """(() => {
        const pixels = wave.getContext("2d").getImageData(0, 0, wave.width, wave.height).data;
        let drawn = 0;
        for (let alpha = 3; alpha < pixels.length; alpha += 4) drawn += pixels[alpha] > 0;
        return drawn / (wave.width * wave.height);
    })()"""
    share = tab.evaluate(count)
    return bool(0.01 < share < 0.5)


@pytest.mark.faults
def test_a_replica_that_is_killed_under_load_leaves_no_request_without_an_answer(server: TaggerServer) -> None:
    killed: list[int] = []

    def kill(answers: int) -> None:
        if answers >= 60 and not killed:
            (replica,) = server.replicas()
            killed.append(replica.pid)
            replica.kill()

    replies = ask_at_once([(f"{server.url}/tag", wav(2.0))] * 200, clients=6, on_reply=kill)
    found = Counter(reply.status for reply in replies)
    assert killed
    assert 0 not in found, [reply.text for reply in replies if not reply.status]
    assert found[503] <= 4, found  # those that it was working on
    assert found.keys() <= {200, 503}, found
    for reply in replies:
        if reply.status == 503:
            assert reply.headers["retry-after"] == "1"
            assert reply.json["detail"].endswith("send the request again")
    assert found[200] >= 100, found
    assert ask(f"{server.url}/tag", wav(1.0)).status == 200
    assert [replica.pid for replica in server.replicas()] != killed
