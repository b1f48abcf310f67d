"""`antiphon export --to hub`: what transformers makes of the folder, and its card."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from orchestrator.artifacts.tag import load_for_tagging
from tests.official import waveform
from tests.serving import publish
from workloads.config.architectures import AST
from workloads.config.recipe import FrontEnd, Model
from workloads.evaluate import metrics
from workloads.evaluate.bootstrap import score_intervals

RATE, TAGS = 16_000, ("dog", "rain *loud*", "saw")
KALDI = FrontEnd(kind="kaldi128", frames=128, mean=-6.8, std=11.0)


def ast(folder: Path, **arch: Any) -> Path:
    return publish("ast", folder, Model(arch=AST(family="ast", size="tiny", **arch), front_end=KALDI), tags=TAGS)


@pytest.mark.parametrize("stride", [10, 16])
def test_transformers_says_what_antiphon_says(stride: Any, antiphon: Any, tmp_path: Path, monkeypatch: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="no transformers; pip install 'antiphon[hub]'")
    folder = ast(tmp_path, stride=stride)
    monkeypatch.chdir(tmp_path)
    done = antiphon("export", folder, "hub", "--to", "hub", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert result["largest_difference"] < 1e-4
    assert [Path(path).name for path in result["files"]] == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    tagger = load_for_tagging(str(folder)).tagger
    model, problems = transformers.AutoModelForAudioClassification.from_pretrained("hub", output_loading_info=True)
    assert not any(problems.values()), problems
    extractor = transformers.AutoFeatureExtractor.from_pretrained("hub")
    for samples in (RATE, 9000):
        x_T = waveform(1.0, RATE)[1, :samples]
        with torch.no_grad():
            theirs_BC = model.eval()(**extractor(x_T.numpy(), sampling_rate=RATE, return_tensors="pt")).logits
            padded_BT = torch.nn.functional.pad(x_T, (0, RATE - samples))[None]
            ours_BC = tagger.tag(padded_BT, (torch.arange(RATE) < samples)[None])
        torch.testing.assert_close(theirs_BC, ours_BC, atol=1e-4, rtol=0)
        assert ours_BC.std() > 0.1
    assert [model.config.id2label[number] for number in range(3)] == list(TAGS)
    assert model.config.problem_type == "multi_label_classification"


def test_the_card_s_code_prints_what_antiphon_tag_prints(
    antiphon: Any, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    pytest.importorskip("transformers", reason="no transformers; pip install 'antiphon[hub]'")
    folder = ast(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert antiphon("export", folder, "hub", "--to", "hub").code == 0
    soundfile.write("clip.wav", waveform(2.0, RATE)[0].numpy(), RATE)  # of which the program takes the first second
    soundfile.write("first.wav", waveform(2.0, RATE)[0, :RATE].numpy(), RATE)
    tags = json.loads(antiphon("tag", folder, "first.wav", "--json").out)["files"]["first.wav"]
    card = Path("hub/README.md").read_text()
    assert "license: unknown" in card
    assert "rain \\*loud\\*" in card
    Path("snippet.py").write_text(card.split("```python\n")[1].split("```")[0])
    capfd.readouterr()
    runpy.run_path("snippet.py")
    printed = [line.split("  ") for line in capfd.readouterr().out.splitlines()]
    assert [tag for _, tag in printed] == [tag for tag, _ in tags]
    assert [float(p) for p, _ in printed] == pytest.approx([p for _, p in tags], abs=0.002)


@pytest.mark.parametrize(("seconds", "frames"), [(1.0, 128), (2.5, 0), (0.4, 0)])
def test_an_exported_folder_comes_back_as_the_same_tagger(
    antiphon: Any, tmp_path: Path, seconds: float, frames: int
) -> None:
    """Twice there and back: weights, tags, clips, front end and licence stay."""
    pytest.importorskip("transformers", reason="no transformers; pip install 'antiphon[hub]'")
    model = Model(arch=AST(family="ast", size="tiny", stride=16), front_end=replace(KALDI, frames=frames))
    tags = ("Löwe", "Rain, light", 'saw "big"')
    folder, first = publish("ast", tmp_path, model, tags=tags, clip_seconds=seconds), tmp_path / "first"
    assert antiphon("export", folder, first, "--to", "hub").code == 0
    card = first / "README.md"
    card.write_text(card.read_text().replace("license: unknown", "license: cc-by-nc-4.0"))
    assert antiphon("models", "import", first, tmp_path / "back").code == 0
    assert antiphon("export", tmp_path / "back", tmp_path / "second", "--to", "hub").code == 0
    assert "\nlicense: cc-by-nc-4.0\n" in (tmp_path / "second" / "README.md").read_text()
    done = antiphon("models", "import", tmp_path / "second", tmp_path / "again", "--json")
    assert json.loads(done.out)["origin"]["licence"] == "cc-by-nc-4.0"
    ours, again = (load_for_tagging(str(path)).tagger for path in (folder, tmp_path / "again"))
    assert (again.tags, again.labels, again.clip_seconds) == (tags, "multi", seconds)
    assert (again.num_frames, again.mean, again.std) == (ours.num_frames, ours.mean, ours.std)
    expected, found = ours.state_dict(), again.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    x_BT = waveform(seconds, RATE)
    with torch.no_grad():
        logits_BC = ours.tag(x_BT)
        assert torch.equal(again.tag(x_BT), logits_BC)
    assert logits_BC.std() > 0.1


def test_wrong_options_are_refused(antiphon: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="no transformers; pip install 'antiphon[hub]'")
    folder = ast(tmp_path)
    assert "exists already" in antiphon("export", folder, tmp_path, "--to", "hub").err
    assert "there is no folder" in antiphon("export", folder, tmp_path / "a" / "b", "--to", "hub").err
    done = antiphon("export", folder, tmp_path / "hub", "--to", "hub", "--front-end", "outside")
    assert "--front-end: is for files" in done.err


def test_the_interval_of_a_score_holds_it_and_narrows_with_more_clips() -> None:
    generator = np.random.default_rng(0)

    def interval(clips: int) -> tuple[float, float, float]:
        y_NC = torch.from_numpy(generator.integers(0, 2, (clips, 4))).float()
        logits_NC = y_NC + torch.from_numpy(generator.normal(0, 1.0, (clips, 4)))
        low, high = score_intervals(logits_NC, y_NC, "multi")["mAP"]
        return low, high, metrics.score(logits_NC, y_NC, "multi")["mAP"]

    (low, high, value), (low_many, high_many, many) = interval(60), interval(960)
    assert low < value < high
    assert low_many < many < high_many
    assert (high - low) / (high_many - low_many) == pytest.approx(4, rel=0.5)
