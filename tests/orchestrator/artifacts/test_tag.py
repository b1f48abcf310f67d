"""`antiphon tag`: many files of which some are bad, and names as disks hold them."""

import json
import os
import struct
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from workloads.config.architectures import FrameMN, ViT
from workloads.config.recipe import Model
from workloads.models.tagger import Tagger, build_tagger
from workloads.runtime import checkpoint

RATE = 16_000


def tiny_tagger(tags: tuple[str, ...] = ("dog", "rain")) -> Tagger:
    model = Model(arch=ViT(family="vit", dim=16, depth=1, heads=2, pool="avg"))
    return build_tagger(model, name="vit", tags=tags, labels="multi", clip_seconds=1.0, clip_rate=RATE, seed=0).eval()


def publish(tagger: Tagger, folder: Path) -> Path:
    state = {
        "kind": "tagger",
        "name": "vit",
        "model": asdict(tagger.model),
        "tags": list(tagger.tags),
        "labels": tagger.labels,
        "clip_seconds": tagger.clip_seconds,
        "clip_rate": tagger.clip_rate,
        "long_clips": "windows",
    }
    return checkpoint.write(folder, tensors={"weights": tagger.state_dict()}, state=state)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two good files."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    noise_T = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    for name in ("a.wav", "b.wav"):
        soundfile.write(name, noise_T, RATE)
    return folder


def test_one_bad_file_is_named_and_the_others_are_tagged(files, tmp_path, antiphon):
    """A FIFO would be waited for, and a device read, for ever."""
    tagger = publish(tiny_tagger(), tmp_path / "vit")
    Path("folder").mkdir()
    os.symlink("loop.wav", "loop.wav")
    os.mkfifo("pipe.wav")
    wav = bytearray(Path("a.wav").read_bytes())
    wav[24:28] = struct.pack("<I", 1)
    Path("rate.wav").write_bytes(wav)
    Path("text.wav").write_text("no sound")
    bad = ["missing.wav", "folder", "loop.wav", "pipe.wav", "/dev/zero", "rate.wav", "text.wav"]
    done = antiphon("tag", tagger, "a.wav", *bad, "b.wav", "--json")
    assert done.code == 1
    result = json.loads(done.out)
    assert list(result["files"]) == ["a.wav", "b.wav"]
    assert list(result["broken"]) == bad
    reasons = result["broken"]
    assert reasons["missing.wav"] == "not found"
    assert reasons["folder"] == "is a folder"
    assert reasons["loop.wav"] == "cannot be read (Too many levels of symbolic links)"
    assert reasons["pipe.wav"] == reasons["/dev/zero"] == "is a pipe or a device"
    assert reasons["rate.wav"].startswith("declares a sample rate of 1 Hz")
    for name in bad:
        assert f"{name}: {reasons[name]}\n" in done.err


def test_what_was_mended_in_a_sound_is_said(files, tmp_path, antiphon):
    tagger = publish(tiny_tagger(), tmp_path / "vit")
    samples, _ = soundfile.read("a.wav")
    soundfile.write("loud.wav", 100 * samples, RATE, subtype="FLOAT")
    done = antiphon("tag", tagger, "a.wav", "loud.wav", "--json")
    assert done.code == 0
    result = json.loads(done.out)
    assert list(result["notes"]) == ["loud.wav"]
    assert "loud.wav: goes beyond full scale" in done.err


def test_damaged_weights_give_no_answer(files, tmp_path, antiphon):
    tagger = tiny_tagger()
    with torch.no_grad():
        tagger.backbone.head.weight[0, 0] = torch.nan
    done = antiphon("tag", publish(tagger, tmp_path / "vit"), "a.wav", "--json")
    assert done.code == 1
    assert "NaN" not in done.out
    assert "its weights are damaged" in json.loads(done.out)["broken"]["a.wav"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"[red] x.wav", "[red] x.wav"),
        (b"caf\xe9.wav", "caf\\udce9.wav"),
        (b"\x1b[31mred.wav", "\\x1b[31mred.wav"),
        (b"two\nlines.wav", "two\\nlines.wav"),
    ],
)
def test_any_name_that_a_disk_allows_is_shown(files, tmp_path, antiphon, name, shown):
    tagger = publish(tiny_tagger(tags=("[bold]dog", "\x1b[2Jrain")), tmp_path / "vit")
    os.rename("a.wav", name)
    done = antiphon("tag", tagger, os.fsdecode(name), os.fsdecode(name) + "?")
    assert done.code == 1
    assert done.out.splitlines()[0] == shown
    assert {line.split()[1] for line in done.out.splitlines()[1:]} == {"[bold]dog", "\\x1b[2Jrain"}
    assert done.err == f"{shown}?: not found\n"


def frame_tagger() -> Tagger:
    """It hears the first tag all the time and the second never."""
    model = Model(arch=FrameMN(family="frame_mn", width=0.1))
    about = {"tags": ("dog", "rain"), "labels": "multi", "clip_seconds": 1.0, "clip_rate": RATE}
    tagger = build_tagger(model, name="vit", seed=0, **about).eval()
    with torch.no_grad():
        tagger.backbone.head.bias.copy_(torch.tensor([5.0, -5.0]))
    return tagger


def test_events_are_printed_with_onset_and_offset(files, tmp_path, antiphon):
    noise_T = 0.1 * np.random.default_rng(1).standard_normal(round(2.3 * RATE))
    soundfile.write("long.wav", noise_T, RATE)
    tagger = publish(frame_tagger(), tmp_path / "frames")
    done = antiphon("tag", tagger, "a.wav", "long.wav", "--events", "--top", "1")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "a.wav"
    assert lines[1].endswith("  dog")
    assert lines[2].startswith("     0.00 to    1.00 s")
    assert lines[5].startswith("     0.00 to    2.30 s"), "one event over three windows"
    found = json.loads(antiphon("tag", tagger, "long.wav", "--events", "--json").out)["events"]["long.wav"]
    assert [(event["tag"], event["onset"], event["offset"]) for event in found] == [("dog", 0.0, 2.3)]
    assert "events" not in json.loads(antiphon("tag", tagger, "a.wav", "--json").out)
    quiet = antiphon("tag", tagger, "a.wav", "--events", "--threshold", "0.999")
    assert "to" not in quiet.out


def test_boxes_are_events_between_change_points(files, tmp_path, antiphon):
    tagger = publish(frame_tagger(), tmp_path / "frames")
    done = antiphon("tag", tagger, "a.wav", "--boxes")
    assert (done.code, done.out) == (2, "")
    assert "--boxes: is for events; give --events too, or leave it out" in done.err
    done = antiphon("tag", tagger, "a.wav", "--threshold", "0.3")
    assert (done.code, done.out) == (2, "")
    assert "--threshold: is for events; give --events too, or leave it out" in done.err
    done = antiphon("tag", tagger, "a.wav", "--events", "--boxes", "--json")
    if find_spec("ruptures") is None:
        assert done.code == 2
        assert "--boxes needs the package ruptures, which is not installed: pip install 'antiphon[boxes]'" in done.err
    else:
        (event,) = json.loads(done.out)["events"]["a.wav"]
        assert (event["tag"], event["onset"], event["offset"]) == ("dog", 0.0, 1.0)


def test_events_of_a_tagger_without_logits_in_time_are_refused(files, tmp_path, antiphon):
    tagger = publish(tiny_tagger(), tmp_path / "vit")
    done = antiphon("tag", tagger, "a.wav", "--events")
    assert (done.code, done.out) == (2, "")
    assert "(vit, labels multi) does not say when tags sound; use one with logits in time" in done.err
    done = antiphon("tag", tagger, "a.wav", "--events", "--threshold", "1.5")
    assert "--threshold 1.5: must be between 0 and 1" in done.err
