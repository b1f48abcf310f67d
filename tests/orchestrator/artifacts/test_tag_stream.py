"""`antiphon tag --stream` as a command: files, pipes, a microphone, and all ways in which it ends."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from orchestrator.artifacts.stream import READ_AHEAD
from tests.orchestrator.artifacts.test_tag import frame_tagger, publish, tiny_tagger
from tests.workloads.data.test_sound_stream import pipe
from workloads.config.architectures import OnDevice
from workloads.config.recipe import FrontEnd, Model
from workloads.evaluate.predict import load_tagger
from workloads.models.tagger import build_tagger
from workloads.runtime import checkpoint

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
ALSA = Path("/usr/share/alsa/alsa.conf")
RATE = 16_000


def tone_tagger(folder: Path) -> Path:
    """An LSTM-P whose weights are set by hand: "tone" is what it says while a sound is loud, "quiet" while not.

    Its cell is the loudness (the first cepstral coefficient) of the newest frame: it keeps nothing.
    """
    model = Model(arch=OnDevice(family="ondevice", variant="lstm_p"), front_end=FrontEnd(kind="logmel40"))
    about: dict[str, Any] = {"tags": ("tone", "quiet"), "labels": "multi", "clip_seconds": 1.0, "clip_rate": RATE}
    tagger = build_tagger(model, name="lstm", seed=0, **about).eval()
    lstm = tagger.backbone.lstm
    with torch.no_grad():
        for parameter in tagger.parameters():
            parameter.zero_()
        units = lstm.project.in_features
        lstm.inputs.bias[:units] = 20.0  # all gates are open but the one that keeps
        lstm.inputs.bias[units : 2 * units] = -20.0
        lstm.inputs.bias[3 * units :] = 20.0
        lstm.inputs.weight[2 * units, 0] = 1.0
        lstm.project.weight[0, 0] = 1.0
        tagger.backbone.head.weight[:, 0] = torch.tensor([10.0, -10.0])
    state = {
        **{"kind": "tagger", "name": "lstm", "model": asdict(tagger.model), "tags": ["tone", "quiet"]},
        **{"labels": "multi", "clip_seconds": 1.0, "clip_rate": RATE, "long_clips": "windows"},
    }
    return checkpoint.write(folder, tensors={"weights": tagger.state_dict()}, state=state)


def tones(*spans: tuple[float, float], seconds: float) -> np.ndarray:
    """Silence with noise in these spans."""
    time_T = np.arange(round(seconds * RATE)) / RATE
    loud_T = sum((time_T >= begin) & (time_T < end) for begin, end in spans)
    return (loud_T * np.random.default_rng(0).uniform(-0.5, 0.5, len(time_T))).astype(np.float32)


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def lstm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tagger above; the current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tone_tagger(tmp_path / "lstm")


def test_each_event_of_a_file_opens_and_closes_once(lstm, antiphon):
    soundfile.write("long.flac", tones((2, 3), (3.1, 4), (10, 10.05), (12, 30), seconds=30), RATE)
    done = antiphon("tag", lstm, "--stream", "long.flac", "--json")
    assert done.code == 0, done.err
    start, *events, end = lines(done.out)
    assert start["kind"] == "start"
    assert (start["state"], start["hop_s"], start["threshold"], start["off"]) == ("carried", 0.2, 0.5, 0.3)
    tone = [event for event in events if event["tag"] == "tone"]
    assert [(event["kind"], event["number"]) for event in tone] == [
        *(("opened", 2), ("closed", 2)),  # 0.1 s of silence ends no event; 1 is the silence before
        *(("opened", 4), ("closed", 4)),  # 0.05 s of sound is none
    ]
    assert [event["onset"] for event in tone] == pytest.approx([2, 2, 12, 12], abs=0.05)
    assert [tone[1]["offset"], tone[3]["offset"]] == pytest.approx([4, 30], abs=0.05)
    assert tone[0]["known_at"] < 2 + 0.1 + start["latency_s"] + 0.05
    assert end["kind"] == "end"
    assert (end["seconds"], end["events"], end["ended_by"]) == (30.0, 4, "the sound ended")
    assert end["cpu_s_per_s"] > 0
    assert end["pieces"] == 150

    plain = antiphon("tag", lstm, "--stream", "long.flac")
    first, second = (line for line in plain.out.splitlines() if line.endswith("  tone"))
    assert re.fullmatch(r" +2\.00 to +4\.0\d s +1\.000  tone", first)
    assert re.fullmatch(r" +12\.00 to +30\.00 s +1\.000  tone", second)
    assert "30.0 s heard, 4 events; the sound ended\nstate carried; known 0.37 s after a step at most" in plain.err
    assert "s of CPU time a second of sound" in plain.err


def test_what_is_left_at_the_end_is_a_piece_too(lstm, antiphon):
    """Of 0.1 s, after 20 of 0.2 s; and after the first second 7 windows of half a second one of 0.1 s."""
    soundfile.write("odd.wav", tones((2, 3), seconds=4.1), RATE)
    for options, pieces in (((), 21), (("--no-carry", "--hop", "0.5"), 8)):
        end = lines(antiphon("tag", lstm, "--stream", "odd.wav", "--json", *options).out)[-1]
        assert (end["seconds"], end["pieces"]) == (4.1, pieces)


def test_windows_of_the_same_file_tell_each_event_once_too(lstm, antiphon):
    soundfile.write("long.wav", tones((2, 4), seconds=8), RATE)
    done = antiphon("tag", lstm, "--stream", "long.wav", "--no-carry", "--hop", "0.5", "--json")
    start, *events, end = lines(done.out)
    assert (start["state"], start["hop_s"], start["first_after_s"]) == ("windows", 0.5, 1.0)
    tone = [event for event in events if event["tag"] == "tone"]
    assert [(event["kind"], event["onset"], event["offset"]) for event in tone] == [
        ("opened", 2.0, None),
        ("closed", 2.0, 4.0),
    ]
    assert end["pieces"] == 15


def test_of_ogg_files_that_were_joined_all_are_heard(lstm, antiphon):
    for number, spans in enumerate([[(0.5, 1)], [(0, 1), (1.5, 2)]]):
        soundfile.write(f"{number}.ogg", tones(*spans, seconds=2), RATE, subtype="OPUS")
    Path("both.ogg").write_bytes(Path("0.ogg").read_bytes() + Path("1.ogg").read_bytes())
    *events, end = lines(antiphon("tag", lstm, "--stream", "both.ogg", "--json").out)
    tone = [event for event in events if event.get("tag") == "tone" and event["kind"] == "closed"]
    assert [event["onset"] for event in tone] == pytest.approx([0.5, 2, 3.5], abs=0.1)
    assert [event["offset"] for event in tone] == pytest.approx([1, 3, 4], abs=0.1)
    assert (end["seconds"], end["ended_by"]) == (4.0, "the sound ended")


@contextmanager
def command(*arguments: Any, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process of its own, killed where the test has not ended it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([ANTIPHON, "tag", *map(str, arguments)], **{**pipes, **options})
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                with suppress(BrokenPipeError):
                    pipe.close()


def test_ctrl_c_closes_what_is_open_although_the_pipe_goes_on(lstm):
    samples = (tones((1, 99), seconds=4) * 2**15).astype("<i2").tobytes()
    with command(lstm, "--stream", "-", "--pcm", "s16le", "--rate", RATE, "--json") as process:
        process.stdin.write(samples)
        process.stdin.flush()
        found = []
        for line in process.stdout:  # nothing more comes, and the pipe stays open
            found.append(json.loads(line))
            if found[-1]["kind"] == "opened" and found[-1]["tag"] == "tone":
                break
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
        assert process.wait() == 0, err
    found += lines(out.decode())
    assert [(line["kind"], line.get("tag")) for line in found[-2:]] == [("closed", "tone"), ("end", None)]
    assert found[-2]["offset"] == pytest.approx(found[-1]["seconds"], abs=0.2)
    assert found[-1]["ended_by"] == "stopped"
    assert b"Traceback" not in err


def test_ctrl_c_ends_the_wait_for_a_header(lstm):
    """Four bytes of it come and are read; the pipe stays open."""
    with command(lstm, "--stream", "-", "--json") as process:
        process.stdin.write(b"RIFF")
        process.stdin.flush()
        while unread(process.stdin):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
        assert process.wait() == 0, err
    start, end = lines(out.decode())
    assert (start["kind"], end["kind"]) == ("start", "end")
    assert (end["seconds"], end["events"], end["ended_by"], end["error"]) == (0.0, 0, "stopped", None)
    assert b"0.0 s heard, 0 events; stopped" in err
    assert b"Traceback" not in err


def unread(file: Any) -> int:
    """Bytes in a pipe that its reader has not taken."""
    return int.from_bytes(fcntl.ioctl(file, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_reader_that_goes_away_ends_it_cleanly(lstm):
    samples = (tones((1, 2), (3, 4), seconds=5) * 2**15).astype("<i2").tobytes()
    with command(lstm, "--stream", "-", "--pcm", "s16le", "--rate", RATE, "--json") as process:
        process.stdin.write(samples)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["kind"] == "start"
        process.stdout.close()

        def go_on() -> None:
            while process.poll() is None:
                try:
                    process.stdin.write(samples)
                    process.stdin.flush()
                except BrokenPipeError:
                    return

        writer = threading.Thread(target=go_on)
        writer.start()
        err = process.stderr.read()
        assert process.wait() == 0, err
        writer.join()
    assert b"nobody reads the output" in err
    assert b"Traceback" not in err
    assert b"Exception" not in err


@contextmanager
def standard_input(content: bytes) -> Iterator[None]:
    """Standard input of this process is a pipe with this content."""
    before = os.dup(0)
    with pipe(content) as descriptor:
        os.dup2(descriptor, 0)
        try:
            yield
        finally:
            os.dup2(before, 0)
            os.close(before)


def test_a_wav_file_on_standard_input_is_heard_and_named_where_it_is_cut_short(lstm, antiphon):
    soundfile.write("whole.wav", tones((1, 2.5), seconds=4), RATE)
    content = Path("whole.wav").read_bytes()
    for heard, code in ((content, 0), (content[: len(content) // 2], 2)):
        with standard_input(heard):
            done = antiphon("tag", lstm, "--stream", "-", "--json")
        assert done.code == code, done.err
        *events, end = lines(done.out)
        tone = [event for event in events if event.get("tag") == "tone"]
        assert [event["kind"] for event in tone] == ["opened", "closed"]
        assert tone[1]["offset"] == pytest.approx(min(2.5, end["seconds"]), abs=0.05)
    assert end["seconds"] == pytest.approx(2.0, abs=0.01)
    assert end["error"].startswith("cut short: 319")
    assert "mistake: --stream standard input: cut short: 319" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.wav"], "--stream nothing.wav: not found"),
        (["empty.wav"], "--stream empty.wav: its header declares no samples"),
        (["short.wav"], "--stream short.wav: holds 0.006 s of sound; a tagger needs 0.05 s or more"),
        (["text.wav"], "--stream text.wav: cannot be decoded (Format not recognised.)"),
        (["."], "--stream .: is a folder\n"),
        (["a pipe"], "--stream a pipe: is a pipe or a device; hear it as standard input: --stream - < 'a pipe'"),
        (["rate.wav"], "--stream rate.wav: declares a sample rate of 1 Hz"),
        (["cut.wav"], "--stream cut.wav: cut short: "),
        (["good.wav", "--pcm", "s16le", "--rate", "16000"], "begins as a file with a header does (b'RIFF'): leave out"),
        (["good.wav", "--pcm", "s16le"], "--pcm: raw samples do not say their rate; give --rate"),
        (["good.wav", "--pcm", "mp3", "--rate", "16000"], "--pcm 'mp3': no such form of samples; known are u8, s16le"),
        (["good.wav", "--rate", "8000"], "--rate 8000: a header says the rate"),
        (["-", "--pcm", "s16le", "--rate", "8"], "--rate 8: must be 100 to 2000000 Hz"),
        (["-", "--pcm", "s16le", "--rate", "8000", "--channels", "0"], "--channels 0: must be 1 to 64"),
        (["good.wav", "--channels", "2"], "--channels 2: is for raw samples (--pcm)"),
        (["good.wav", "--threshold", "0.3", "--off", "0.5"], "off = 0.5: must be at most threshold = 0.3"),
        (["good.wav", "--threshold", "1.5"], "threshold = 1.5: must be between 0 and 1"),
        (["good.wav", "--min-duration", "-1"], "min_duration = -1: must be 0 s or more"),
        (["good.wav", "--hop", "3"], "hop = 3: must be 0.02 to 1 s, the length of its clips"),
        (["good.wav", "other.wav"], "--stream good.wav: prints the events of one sound; leave out files"),
        (["good.wav", "--events"], "leave out files, --events, --boxes and --top"),
        (["good.wav", "--top", "3"], "leave out files, --events, --boxes and --top"),
    ],
)
def test_mistakes_are_named_with_the_fix(lstm, antiphon, arguments, message):
    os.mkfifo("a pipe")
    soundfile.write("good.wav", tones(seconds=1), RATE)
    soundfile.write("empty.wav", tones(seconds=0), RATE)
    soundfile.write("short.wav", tones(seconds=0.006), RATE)
    Path("text.wav").write_text("no sound")
    content = bytearray(Path("good.wav").read_bytes())
    Path("cut.wav").write_bytes(content[:20_000])
    content[24:28] = (1).to_bytes(4, "little")
    Path("rate.wav").write_bytes(content)
    done = antiphon("tag", lstm, "--stream", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_options_of_streams_without_one_and_no_files_are_named(lstm, antiphon):
    done = antiphon("tag", lstm, "a.wav", "--merge-gap", "1")
    assert (done.code, done.out) == (2, "")
    assert "--merge-gap: is an option of --stream; give that, or leave it out" in done.err
    done = antiphon("tag", lstm)
    assert "no file to tag: name audio files, or one sound with --stream" in done.err


def test_a_tagger_that_hears_clips_as_a_whole_is_not_asked_to_carry_its_state(lstm, tmp_path, antiphon):
    soundfile.write("good.wav", tones(seconds=3), RATE)
    tagger = publish(tiny_tagger(), tmp_path / "vit")
    done = antiphon("tag", tagger, "--stream", "good.wav", "--carry")
    assert (done.code, done.out) == (2, "")
    assert "cannot: vit hears a clip as a whole and has no state to carry; without --carry it hears windows" in done.err
    start, *_ = lines(antiphon("tag", tagger, "--stream", "good.wav", "--json").out)
    assert start["state"] == "windows"


def test_damaged_weights_end_it_with_the_reason(lstm, tmp_path, antiphon):
    soundfile.write("good.wav", tones(seconds=3), RATE)
    tagger = frame_tagger()
    with torch.no_grad():
        tagger.backbone.head.weight.fill_(torch.nan)
    done = antiphon("tag", publish(tagger, tmp_path / "frames"), "--stream", "good.wav", "--json")
    assert done.code == 2
    assert "its weights are damaged" in lines(done.out)[-1]["error"]
    assert "its weights are damaged" in done.err


def test_an_event_that_opens_in_the_block_that_fails_is_told_before_it_closes(tmp_path, antiphon):
    """A block of 0.1 s is five pieces. A unit that only a very loud sound opens makes the logits infinite."""
    tagger, state = load_tagger(tone_tagger(tmp_path / "lstm"), "lstm")
    lstm, units = tagger.backbone.lstm, tagger.backbone.lstm.project.in_features
    with torch.no_grad():
        lstm.inputs.weight[1, 0], lstm.inputs.bias[1], lstm.inputs.bias[2 * units + 1] = 10.0, -300.0, 20.0
        lstm.project.weight[1, 1], tagger.backbone.head.weight[0, 1] = 100.0, 3e38
    folder = checkpoint.write(tmp_path / "overflows", tensors={"weights": tagger.state_dict()}, state=state)
    in_one_block = 0
    for place in np.arange(0.70, 0.86, 0.02):
        x_T = tones((0.5, 1), seconds=2)
        x_T[round(place * RATE) :] = 1e6 * np.random.default_rng(1).standard_normal(len(x_T) - round(place * RATE))
        soundfile.write(tmp_path / "loud.wav", x_T, RATE, subtype="FLOAT")
        done = antiphon("tag", folder, "--stream", tmp_path / "loud.wav", "--hop", "0.02", "--json")
        assert done.code == 2
        _, *events, end = lines(done.out)
        assert "are not finite" in end["error"]
        for number in range(1, end["events"] + 1):
            assert [event["kind"] for event in events if event["number"] == number] == ["opened", "closed"]
        tone = [event for event in events if event["tag"] == "tone"]
        in_one_block += bool(tone) and tone[0]["known_at"] == tone[1]["known_at"]
    assert in_one_block > 0


def test_a_terminal_shows_what_is_open(lstm):
    """Through a pseudo-terminal: closed events are lines, open ones rows of a table."""
    soundfile.write("long.wav", tones((2, 40), (50, 51), seconds=60), RATE)
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with command(lstm, "--stream", "long.wav", stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
        assert process.wait() == 0
    os.close(ours)
    assert b"s heard" in shown
    assert b"probability" in shown
    assert re.search(rb"  2\.00 to +40\.0\d s +1\.000  tone\r\n", shown)
    assert re.search(rb" 50\.00 s .+ 1\.000 .+ tone", shown)


class PortAudioError(Exception):
    pass


def devices(stream: Any) -> SimpleNamespace:
    """A stand-in for sounddevice, which needs a library and a device: its names that are used here."""
    inputs = [
        {"index": 0, "name": "Speaker", "max_input_channels": 0},
        {"index": 1, "name": "Room", "max_input_channels": 2},
    ]
    return SimpleNamespace(InputStream=stream, PortAudioError=PortAudioError, query_devices=lambda: inputs)


@pytest.mark.usefixtures("not_under_nohup")
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP])
def test_a_microphone_is_heard_until_a_signal(lstm, antiphon, monkeypatch, which):
    asked: dict[str, Any] = {}

    class InputStream:
        def __init__(self, **options: Any) -> None:
            asked.update(options)
            self.samples, self.place = tones((1, 2), seconds=4)[:, None], 0

        def __enter__(self) -> None:
            asked["open"] = True

        def __exit__(self, *_: object) -> None:
            asked["open"] = False

        def read(self, count: int) -> tuple[np.ndarray, bool]:
            block_TD = self.samples[self.place : self.place + count]
            self.place += count
            if len(block_TD):
                return block_TD, self.place == count
            if self.place > (READ_AHEAD + 50) * count:  # so much is not read ahead: what came first was heard
                os.kill(os.getpid(), which)
            return np.zeros((count, 1), np.float32), False

    monkeypatch.setitem(sys.modules, "sounddevice", devices(InputStream))
    done = antiphon("tag", lstm, "--stream", "mic:Room", "--rate", RATE, "--json")
    assert done.code == 0, done.err
    *_, end = found = lines(done.out)
    assert [line["offset"] for line in found if line["kind"] == "closed" and line["tag"] == "tone"] == pytest.approx(
        [2], abs=0.05
    )
    assert end["ended_by"] == "stopped"
    assert end["notes"] == ["1 times samples were lost, because they were not read in time"]
    assert asked == {**asked, "samplerate": RATE, "channels": 1, "device": "Room"}


def test_a_device_of_alsa_is_heard_through_portaudio(lstm):
    """ALSA's own stand-in for a device: it gives what is in a file, as fast as it is asked."""
    if find_spec("sounddevice") is None or find_library("portaudio") is None or not ALSA.is_file():
        pytest.skip("sounddevice, PortAudio or ALSA is not installed")
    (0.5 * tones((0, 60), seconds=60)).astype("<f4").tofile("sound.raw")
    device = (
        f'type plug slave.pcm {{ type file slave.pcm {{ type null }} file /dev/null infile "{Path.cwd()}/sound.raw"'
    )
    Path("alsa.conf").write_text(f"<{ALSA}>\npcm.from_a_file {{ {device} format raw }} }}\n")
    environment = {**os.environ, "ALSA_CONFIG_PATH": str(Path("alsa.conf").absolute())}
    with command(lstm, "--stream", "mic:from_a_file", "--json", env=environment) as process:
        found = []
        for line in process.stdout:
            found.append(json.loads(line))
            if found[-1]["kind"] == "opened":
                break
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
        assert process.wait() == 0, err
    found += lines(out.decode())
    assert found[1]["tag"] == "tone", err
    assert [(line["kind"], line.get("ended_by")) for line in found[-2:]] == [("closed", None), ("end", "stopped")]


def test_a_microphone_that_cannot_be_opened_is_named_with_those_that_are_there(lstm, antiphon, monkeypatch):
    def refuse(**options: Any) -> None:
        raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    monkeypatch.setitem(sys.modules, "sounddevice", devices(refuse))
    done = antiphon("tag", lstm, "--stream", "mic:Hall")
    assert (done.code, done.out) == (2, "")
    assert "microphone 'Hall': cannot be opened (Invalid sample rate [PaErrorCode -9997]); the inputs are 1 Room; " in (
        done.err
    )
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    done = antiphon("tag", lstm, "--stream", "mic")
    assert "needs the package sounddevice, which is not installed: pip install 'antiphon[mic]'" in done.err
    done = antiphon("tag", lstm, "--stream", "mic", "--pcm", "s16le", "--rate", RATE)
    assert "--pcm s16le: is for raw samples in a file or a pipe; leave it out" in done.err
