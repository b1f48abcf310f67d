"""`antiphon init` on folders of each kind: what it writes runs, and it says what a run takes."""

import io
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orchestrator.recipes.loader import load_recipe
from orchestrator.scaffold.cost import RunCost, cost_at_same_speed
from orchestrator.scaffold.first_recipe import write_first_recipe
from orchestrator.scaffold.sizes import Machine
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.data.manifest import read_dataset
from workloads.data.splits import split

SHORT = ["--set", "schedule.burn_in=2", "--set", "schedule.period=2", "--set", "train.threads=1", "--local"]


def tones(root: Path, names: list[str], *, rate: int = 8000, seconds: float = 0.5) -> Path:
    """A tone for each file, whose pitch is that of its first letter."""
    generator = np.random.default_rng(0)
    for name in names:
        path, time = root / name, np.arange(round(seconds * rate)) / rate
        path.parent.mkdir(parents=True, exist_ok=True)
        pitch = 300 + 40 * (ord(Path(name).name[0]) % 32)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * time) + generator.normal(0, 0.02, len(time)), rate)
    return root


def digits(root: Path) -> Path:
    who = ("ann", "bob", "cy", "dee")
    return tones(root, [f"{digit}_{name}_{take}.wav" for digit in range(4) for name in who for take in range(3)])


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """In a folder of its own, on a machine with one core: tests share theirs."""
    monkeypatch.chdir(tmp_path)
    machine = Machine(cores=1, memory=8 * 2**30, gpu=False)
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: machine))


@pytest.fixture
def untimed(monkeypatch):
    """Training a few steps takes seconds: once is enough."""
    cost = RunCost(
        steps=700,
        train_minutes=90.0,
        decode_minutes=0.5,
        memory_bytes=10**9,
        cache_bytes=10**6,
        busy=True,
        tflops=1.0,
    )

    def in_proportion(recipe, files, before):
        return replace(before, train_minutes=90 * (recipe.schedule.burn_in + recipe.schedule.period) / 600)

    monkeypatch.setattr("orchestrator.scaffold.first_recipe.run_cost", lambda *_, **__: cost)
    monkeypatch.setattr("orchestrator.scaffold.first_recipe.cost_at_same_speed", in_proportion)


def test_digits_by_file_name_give_a_recipe_that_runs(antiphon, tmp_path):
    root = digits(tmp_path / "Spoken digits")
    done = antiphon(
        "init", root, "--out", "first", "--tags-from", "name:1", "--source-from", "name:2", "--minutes", "600"
    )
    assert done.code == 0, done.err
    assert "48 clips with 4 tags (single)" in done.out
    assert "a run here takes about" in done.out
    (memory,) = (line for line in done.out.splitlines() if line.startswith("memory of the process that trains"))
    assert " MB" in memory or " GB" in memory
    assert "train     antiphon run first/spoken-digits.toml" in done.out
    assert "then tag  antiphon tag MODEL clip.wav" in done.out
    recipe = load_recipe("first/spoken-digits.toml")
    assert (recipe.data.clip_seconds, recipe.rate, recipe.data.root) == (0.5, 8000, str(root))
    ran = antiphon(
        "run", "first/spoken-digits.toml", "--storage", "runs", "--run-id", "r", "--tracking", "none", *SHORT
    )
    assert ran.code == 0, ran.err
    outcome = json.loads(Path("runs/r/outcome.json").read_text())
    assert {name: row["steps_learned"] for name, row in outcome["models"].items()} == {"cnn": 4, "vit": 4}


def test_a_person_is_asked_and_wrong_numbers_are_asked_again(antiphon, tmp_path, monkeypatch, untimed):
    terminal = io.StringIO("3\n2\n\n")  # there is no third answer; the second; the default
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    root = digits(tmp_path / "d")
    done = antiphon("init", root, "--minutes", "600")
    assert done.code == 0, done.err
    assert "Where are the tags?\n  1  part 1 of the file names: 0, 1, 2 ... (4 values)\n" in done.err
    assert "3: must be 1 to 2" in done.err
    assert "48 clips with 4 tags" in done.out  # the speakers
    assert {row.split(",")[2] for row in Path("d.csv").read_text().splitlines()[1:]} == {"ann", "bob", "cy", "dee"}


def test_with_yes_it_says_what_it_took_and_with_json_it_prints_one_object(antiphon, tmp_path, untimed):
    done = antiphon("init", digits(tmp_path / "d"), "--yes", "--json", "--minutes", "600")
    assert done.code == 0, done.err
    assert "Taken: --tags-from name:1" in done.err
    printed = json.loads(done.out)
    assert (printed["clips"], printed["tags"], printed["labels"]) == (48, 4, "single")
    assert (printed["minutes"], printed["memory_bytes"], printed["steps"]) == (90.5, 10**9, 700)


def test_several_tags_a_clip_by_a_table_make_a_multi_label_recipe_that_runs(antiphon, tmp_path, untimed):
    root = tones(
        tmp_path / "d", [f"{tag}{number}.wav" for tag in "ab" for number in range(15)], seconds=1.0, rate=16_000
    )
    rows = [f"{tag}{number}.wav;{tag}|{'odd' if number % 2 else 'even'}" for tag in "ab" for number in range(15)]
    (root / "tags.csv").write_bytes("\n".join(["\ufefffile;tags", *rows]).encode())
    done = antiphon("init", root, "--minutes", "600")
    assert done.code == 0, done.err
    assert load_recipe("d.toml").data.labels == "multi"
    ran = antiphon("run", "d.toml", "--storage", "runs", "--run-id", "r", "--tracking", "none", *SHORT)
    assert ran.code == 0, ran.err


def test_a_tag_with_one_clip_trains_and_one_that_cannot_is_named(antiphon, tmp_path, untimed):
    """The first slice would validate on the only cat and owl that are not tested."""
    many = [f"{tag}/{number}.wav" for tag in ("dog", "rain") for number in range(9)]
    root = tones(tmp_path / "d", [*many, "cat/1.wav", "cat/2.wav", "owl0/30.wav", "owl1/31.wav", "owl2/32.wav"])
    done = antiphon("init", root, "--minutes", "600")
    assert done.code == 0, done.err
    data = load_recipe("d.toml").data
    dataset = read_dataset(data, FsspecFiles())
    assert data.val_slice > 0
    assert {tag for clip in split(dataset, data).train for tag in clip.tags} == {*dataset.tags}
    assert {tag for clip in split(dataset, replace(data, val_slice=0)).train for tag in clip.tags} != {*dataset.tags}
    speakers = tones(
        tmp_path / "e", [f"{who}/{tag}_{n}.wav" for who in "abc" for tag in ("x", "y", who) for n in (1, 2)]
    )
    done = antiphon("init", speakers, "--tags-from", "name:1", "--source-from", "folder:1", "--minutes", "600")
    assert done.code == 0, done.err
    assert "tags that only validation has, beside the test fold: " in done.out


def test_a_recipe_that_would_take_too_long_has_fewer_steps(antiphon, tmp_path, untimed):
    """Decoding, half a minute, counts too."""
    steps = {}
    for name, minutes in (("whole", "90.5"), ("half", "45.5"), ("none", "0.001")):
        done = antiphon("init", digits(tmp_path / "d"), "--yes", "--minutes", minutes, "--name", name, "--json")
        assert done.code == 0, done.err
        schedule, found = load_recipe(f"{name}.toml").schedule, json.loads(done.out)
        steps[name] = schedule.burn_in + schedule.period
        longer = [line for line in found["about"] if line.startswith("longer than --minutes")]
        assert bool(longer) == (found["minutes"] > float(minutes))
    assert steps == {"whole": 600, "half": 300, "none": 3}
    assert longer == ["longer than --minutes 0.001: decoding takes 0.5 of them, the shortest schedule 0.5"]


def test_a_shorter_schedule_is_counted_at_the_speed_that_was_measured(tiny):
    """And not timed again: a second measurement might be any time longer than the one that chose its steps."""
    measured = RunCost(0, 0.0, 0.5, memory_bytes=1, cache_bytes=1, busy=True, tflops=1e-6)
    long, short = (
        cost_at_same_speed(tiny("mutual", "schedule.burn_in=0", f"schedule.steps={steps}"), FsspecFiles(), measured)
        for steps in (400, 200)
    )
    assert (long.steps, short.steps) == (400, 200)
    assert 0.45 < short.train_minutes / long.train_minutes < 0.6
    assert (short.decode_minutes, short.tflops, short.busy) == (0.5, 1e-6, True)


def test_real_audio_in_esc_50s_layout_is_read_by_its_own_reader(antiphon, esc10, untimed):
    done = antiphon("init", esc10, "--name", "Mine", "--minutes", "600")
    assert done.code == 0, done.err
    recipe = load_recipe("mine.toml")
    assert (recipe.data.format, recipe.data.clip_seconds, recipe.rate) == ("esc50", 5.0, 16_000)
    assert not Path("mine.csv").exists()
    done = antiphon("init", esc10, "--name", "other", "--tags-from", "column:category")
    assert (done.code, "DIR is esc50, whose own tables say that" in done.err) == (2, True)


@pytest.mark.slow
def test_what_is_written_for_real_audio_runs(antiphon, esc10):
    assert antiphon("init", esc10, "--name", "mine", "--minutes", "600").code == 0
    ran = antiphon("run", "mine.toml", "--storage", "runs", "--run-id", "r", "--tracking", "none", *SHORT)
    assert ran.code == 0, ran.err


def test_nothing_is_overwritten_and_nothing_is_left_of_a_mistake(antiphon, tmp_path, untimed):
    root = digits(tmp_path / "d")
    Path("d.csv").write_text("mine")
    done = antiphon("init", root, "--yes")
    assert (done.code, "d.csv: already exists; move it away" in done.err) == (2, True)
    assert Path("d.csv").read_text() == "mine"
    done = antiphon("init", tones(tmp_path / "one", ["dog/1.wav", "dog/2.wav", "dog/3.wav"]), "--yes")
    assert (done.code, "one class cannot be learned" in done.err) == (2, True)
    assert not list(tmp_path.glob("one.*"))
    for minutes in ("0", "nan"):
        assert antiphon("init", root, "--minutes", minutes).code == 2


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_ended_command_leaves_nothing_so_that_it_works_again(antiphon, tmp_path, monkeypatch, which):
    def interrupted(*_, **__):
        assert {path.name for path in Path("first").iterdir()} == {"d.csv", "d.toml"}
        signal.raise_signal(which)

    monkeypatch.setattr("orchestrator.scaffold.first_recipe.run_cost", interrupted)
    handler = signal.default_int_handler if which == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(which, handler)  # the tests may run in the background, or under nohup
    try:
        with pytest.raises(KeyboardInterrupt if which == signal.SIGINT else SystemExit):
            write_first_recipe(str(digits(tmp_path / "d")), Path("first"), lambda question: 0)
        assert signal.getsignal(which) == handler
    finally:
        signal.signal(which, before)
    assert not list(Path("first").iterdir())


@pytest.mark.parametrize("name", ["new\nline", "a\x7fb", "x # \"y\" {z} 'ö'"])
def test_folders_of_any_name_give_a_recipe_that_can_be_read(antiphon, tmp_path, untimed, name):
    root = tones(tmp_path / name, [f"{tag}/{number}.wav" for tag in "ab" for number in range(6)])
    done = antiphon("init", root, "--out", tmp_path / name / "out", "--name", "n", "--minutes", "600")
    assert done.code == 0, done.err
    data = load_recipe(str(tmp_path / name / "out" / "n.toml")).data
    assert (data.root, data.manifest) == (str(root), str(root / "out" / "n.csv"))


def test_paths_that_no_recipe_can_hold_are_refused(antiphon, tmp_path):
    root = digits(tmp_path / "d")
    other = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    root.rename(other)
    done = antiphon("init", other)
    assert (done.code, "/\\udcff': is not in UTF-8, as recipes are; rename the folder" in done.err) == (2, True)
    other.rename(root)
    done = antiphon("init", root, "--yes", "--out", other)
    assert (done.code, "--out = " in done.err, other.exists()) == (2, True, False)
    done = antiphon("init", root, "--yes", "--out", root / "0_ann_0.wav")
    assert (done.code, "0_ann_0.wav': is a file; name the folder" in done.err) == (2, True)


def test_a_busy_machine_is_said_to_be(antiphon, tmp_path, untimed):
    done = antiphon("init", digits(tmp_path / "d"), "--yes")
    assert "a run here takes about 60 minutes" in done.out
    assert "this machine is busy: timed on one thread; until it is not, train with --set train.threads=1" in done.out
