"""`antiphon export`: files and cards of a tagger that was really trained, as a user gets them."""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from orchestrator.artifacts import export
from tests.official import waveform
from workloads.evaluate.predict import load_tagger
from workloads.export.export import METADATA_KEY
from workloads.runtime import checkpoint
from workloads.runtime.json_files import TaggerState
from workloads.train import loop


@pytest.fixture
def trained(tiny, start) -> tuple[Path, list[str]]:
    """The small Transformer of a short run, and the settings that give the run's data again."""
    recipe = tiny("demo", "schedule.burn_in=10", "schedule.period=5", "schedule.turns=2", "train.eval_every=20")
    run = start(recipe)
    assert loop(run) == "done"
    data = [f"data.{name}={getattr(recipe.data, name)}" for name in ("synthetic_clips", "clip_seconds", "cache")]
    return run.session.work_dir.parent / "models" / "vit", [word for value in data for word in ("--set", value)]


def test_a_trained_tagger_with_its_front_end(trained, antiphon, tmp_path, monkeypatch, capfd):
    """The card's Python block, run unchanged, prints the tags that `antiphon tag` prints."""
    folder, _ = trained
    tagger, state = load_tagger(folder)
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", waveform(1.0, tagger.clip_rate)[0].numpy(), tagger.clip_rate)
    done = antiphon("tag", folder, "clip.wav", "--json")
    tags = json.loads(done.out)["files"]["clip.wav"]
    for to in ("onnx", "pt2"):
        done = antiphon("export", folder, f"tagger.{to}", "--to", to, "--json")
        assert done.code == 0, done.err
        result = json.loads(done.out)
        assert result["largest_difference"] < 1e-5
        assert result["bytes"] == Path(f"tagger.{to}").stat().st_size
        assert set(result["latency_ms"]) == {"pytorch", "file"}
        assert result["facts"]["input"] == {"kind": "waveform", "shape": ["clips", "samples"], "longest": None}
        assert result["facts"]["long_clips"] == "windows"
        assert result["facts"]["weights_sha256"] == checkpoint.weights_digest(tagger.state_dict())
        card = Path(f"tagger.{to}.md").read_text()
        assert "license: unknown" in card
        assert "Trained by antiphon from the recipe demo" in card
        assert state["data"]["fingerprint"] in card
        assert f"{state['test']['mAP']:.4f}" in card
        low, high = map(float, re.search(r"95 % interval of the test part's mAP: (\S+) to (\S+), by", card).groups())
        assert low < state["test"]["mAP"] < high
        printed = snippet(card, capfd)
        assert [tag for _, tag in printed] == [tag for tag, _ in tags]
        assert [float(p) for p, _ in printed] == pytest.approx([p for _, p in tags], abs=0.002)


def snippet(card: str, capfd) -> list[list[str]]:
    """The output of the card's Python block, run in the current folder."""
    code = card.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) < 25
    Path("snippet.py").write_text(code)
    capfd.readouterr()
    runpy.run_path("snippet.py")
    return [line.split("  ") for line in capfd.readouterr().out.splitlines()]


def test_the_int8_file_is_compared_with_the_float_file(trained, antiphon, tmp_path, monkeypatch, capfd):
    folder, data = trained
    monkeypatch.chdir(tmp_path)
    done = antiphon(
        *("export", folder, "tagger.onnx", "--to", "onnx", "--front-end", "outside", "--int8", "demo", *data, "--json")
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)
    int8 = result["int8"]
    _, state = load_tagger(folder)
    assert int8["scores"]["float"] == pytest.approx(state["test"], abs=1e-4)
    assert int8["loss"] == int8["scores"]["float"]["mAP"] - int8["scores"]["int8"]["mAP"]
    assert abs(int8["loss"]) < 0.1
    assert (int8["scored_on"], int8["calibrated_on"]) == (state["data"]["clips"]["test"], 64)
    assert int8["products"]["int8"] > 0
    assert int8["bytes"] == Path("tagger.int8.onnx").stat().st_size
    assert sorted(result["files"]) == ["tagger.int8.onnx", "tagger.onnx", "tagger.onnx.md"]
    card = Path("tagger.onnx.md").read_text()
    assert f"a loss of {int8['loss']:.4f}" in card
    tagger, _ = load_tagger(folder)
    soundfile.write("clip.wav", waveform(1.0, tagger.clip_rate)[0].numpy(), tagger.clip_rate)
    tags = json.loads(antiphon("tag", folder, "clip.wav", "--json").out)["files"]["clip.wav"]
    assert [tag for _, tag in snippet(card, capfd)] == [tag for tag, _ in tags]


def test_the_command_prints_a_summary(trained, antiphon, tmp_path):
    folder, _ = trained
    done = antiphon("export", folder, tmp_path / "tagger.pt2", "--to", "pt2", "--front-end", "outside")
    assert done.code == 0, done.err
    assert "input       log-mel, clips x 64 x 100" in done.out
    assert f"written     {tmp_path / 'tagger.pt2.md'}" in done.out


def test_an_imported_tagger_keeps_its_origin(trained, antiphon, tmp_path):
    """As `antiphon models import` writes one: an origin, no scores, no data, no recipe."""
    folder, _ = trained
    state = checkpoint.read_state(folder)
    origin = {"project": "who/ever", "family": "timm", "file": "vit.bin", "sha256": "ab" * 32, "imported_with": "a"}
    kept = {name: state[name] for name in TaggerState.__required_keys__}
    tensors = {"weights": checkpoint.read_tensors(folder, "weights")}
    for licence, known in (("MIT", "license: mit"), ("GPL-3.0 (or so)", 'license_name: "GPL-3.0 (or so)"')):
        imported = tmp_path / known.split(":")[0]
        checkpoint.write(imported, tensors=tensors, state=kept | {"origin": origin | {"licence": licence}})
        out = imported.with_suffix(".pt2")
        assert antiphon("export", imported, out, "--to", "pt2").code == 0
        card = out.with_name(out.name + ".md").read_text()
        assert known in card
        assert f"Licence of the weights: {licence}." in card
        assert "not trained in an antiphon run" in card
        extra = {METADATA_KEY: ""}
        torch.export.load(out, extra_files=extra)
        assert json.loads(extra[METADATA_KEY])["origin"]["licence"] == licence


def test_the_licence_of_initial_weights_is_kept_from_run_to_run(trained, antiphon, tmp_path, tiny, start):
    """A run starts from imported weights, another from its tagger: both cards name the origin of the weights."""
    folder, _ = trained
    state = checkpoint.read_state(folder)
    origin = {"project": "who/ever", "family": "timm", "file": "v.bin", "sha256": "ab" * 32, "licence": "CC-BY-4.0"}
    kept = {name: state[name] for name in TaggerState.__required_keys__}
    tensors = {"weights": checkpoint.read_tensors(folder, "weights")}
    init = checkpoint.write(tmp_path / "imported", tensors=tensors, state=kept | {"origin": origin})
    for number in range(2):
        run = start(
            tiny("demo", "schedule.burn_in=2", "schedule.turns=2", "schedule.period=1", f"models.vit.init={init}")
        )
        assert loop(run) == "done"
        init = run.session.work_dir.parent / "models" / "vit"
        delivered = checkpoint.read_state(init)
        assert delivered["first_weights"] == origin
        assert "origin" not in delivered, "its weights are its own"
        assert "first_weights" not in checkpoint.read_state(init.with_name("cnn"))
        out = tmp_path / f"{number}.pt2"
        done = antiphon("export", init, out, "--to", "pt2", "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["facts"]["first_weights"] == origin
        card = out.with_name(out.name + ".md").read_text()
        assert "license: cc-by-4.0\npipeline_tag" in card, "the hub's own name of it"
        assert f"initialized with weights imported from who/ever (file v.bin, SHA-256 `{'ab' * 32}`)." in card
        assert "Licence of the initial weights, which still applies: CC-BY-4.0.\n" in card


def test_ceds_file_holds_the_longest_clip_that_its_network_takes(antiphon, tmp_path, tiny, start):
    """With the front end inside longer sounds are heard in windows, so that there is no bound."""
    model = 'models.vit={arch={family="ced"}, front_end={kind="ced64"}}'
    run = start(tiny("demo", "edges=[]", "schedule.burn_in=1", "schedule.period=1", "schedule.turns=2", model))
    assert loop(run) == "done"
    folder = run.session.work_dir.parent / "models" / "vit"
    for front_end, axis, longest in (("inside", "samples", None), ("outside", "frames", 1012)):
        out = tmp_path / f"{front_end}.pt2"
        words = ("--to", "pt2", "--front-end", front_end)
        done = antiphon("export", folder, out, *words)
        assert done.code == 0, done.err
        up_to = f", up to {longest:,} {axis}" if longest else ""
        bound = f"(an axis with a name may have any length{up_to})"
        assert bound in done.out
        assert bound.replace("an axis with a name", "a named axis") in out.with_name(out.name + ".md").read_text()
        extra = {METADATA_KEY: ""}
        torch.export.load(out, extra_files=extra)
        result = json.loads(extra[METADATA_KEY])["input"]
        assert (result["shape"][-1], result.get("longest")) == (axis, longest)


@pytest.mark.parametrize(
    ("out", "words", "message"),
    [
        ("a.onnx", ["--to", "tflite"], "--to 'tflite': must be onnx, pt2 or hub"),
        ("a.pt2", ["--to", "onnx"], "must end in .onnx"),
        ("no/a.onnx", ["--to", "onnx"], "there is no folder"),
        ("a.onnx", ["--to", "onnx", "--front-end", "no"], "must be inside or outside"),
        ("a.onnx", ["--to", "onnx", "--int8", "demo"], "add --front-end outside"),
        ("a.pt2", ["--to", "pt2", "--front-end", "outside", "--int8", "demo"], "use --to onnx"),
        ("a.onnx", ["--to", "onnx", "--set", "data.test_fold=2"], "changes the recipe of --int8"),
        ("there.onnx", ["--to", "onnx"], "there.onnx exists already"),
        ("carded.pt2", ["--to", "pt2"], "carded.pt2.md exists already"),
        ("eight.onnx", ["--to", "onnx", "--front-end", "outside", "--int8", "demo"], "eight.int8.onnx exists already"),
        ("a.onnx", ["--to", "onnx"], "checkpoint 'nowhere': no "),
    ],
)
def test_mistakes_are_reported_and_nothing_is_written(out, words, message, antiphon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("there.onnx", "carded.pt2.md", "eight.int8.onnx"):
        Path(name).write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = antiphon("export", "nowhere", out, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_data_with_other_tags_are_refused(trained, antiphon, tmp_path):
    folder, data = trained
    state = checkpoint.read_state(folder)
    other = checkpoint.write(
        tmp_path / "other",
        tensors={"weights": checkpoint.read_tensors(folder, "weights")},
        state=state | {"tags": [f"tag{number}" for number in range(len(state["tags"]))]},
    )
    done = antiphon(
        *("export", other, tmp_path / "a.onnx", "--to", "onnx", "--front-end", "outside", "--int8", "demo", *data)
    )
    assert done.code == 2
    assert "the tagger does not know them, it knows tag0, tag1" in done.err
    assert not (tmp_path / "a.onnx").exists()


def test_without_the_onnx_packages_the_message_names_what_to_install(antiphon, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = antiphon("export", "nowhere", tmp_path / "a.onnx", "--to", "onnx")
    assert done.code == 2
    assert "--to onnx: needs onnxscript, not installed; pip install 'antiphon[export]'" in done.err


def test_a_file_that_differs_is_not_left_behind(trained, antiphon, tmp_path, monkeypatch):
    """The check fails if the logits of the file differ."""
    folder, _ = trained
    out = tmp_path / "out"
    out.mkdir()

    def shifted(*arguments: Any) -> Callable[[np.ndarray], np.ndarray]:
        runs = genuine(*arguments)
        return lambda example: runs(example) + np.float32(0.01)

    from workloads.export import export as exporting

    genuine = exporting.open_file
    monkeypatch.setattr(exporting, "open_file", shifted)
    target = export.check_target(str(out / "a.pt2"), to="pt2", front_end="inside", int8=False)
    with pytest.raises(exporting.ExportMismatch):
        export.export_checkpoint(str(folder), target, None)
    assert list(out.iterdir()) == []
    shutil.rmtree(out)
