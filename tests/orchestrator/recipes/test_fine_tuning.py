"""The five-class example of docs/models.md runs: an imported network learns the classes of five folders."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from tests.efficientat import case
from tests.test_docs import document
from workloads.evaluate.predict import load_tagger

CLASSES = ("bell", "dog", "engine", "rain", "siren")


def folders(root: Path) -> Path:
    """Twelve clips of a second for each class."""
    generator, time = np.random.default_rng(0), np.arange(16_000) / 16_000
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for take in range(12):
            tone = 0.3 * np.sin(2 * np.pi * 300 * (1 + number) * time) + generator.normal(0, 0.05, len(time))
            soundfile.write(root / name / f"{take}.wav", tone, 16_000)
    return root


def test_the_example_of_the_documents_runs(antiphon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = (text for kind, text in document("docs/models.md").blocks if 'name = "five-classes"' in text)
    Path("five-classes.toml").write_text(example.replace('root = "DIR"', f'root = "{folders(tmp_path / "sounds")}"'))
    torch.save(case("mn04").state, "mn04_as_mAP_432.pt")  # of drawn weights
    done = antiphon("models", "import", "mn04_as_mAP_432.pt", "MN04", "--family", "mn")
    assert done.code == 0, done.err
    short = ["data.clip_seconds=1.0", "schedule.steps=3", "train.shard_size=8", "train.threads=1"]
    settings = [word for value in short for word in ("--set", value)]
    run = ("--run-id", "five", "--local", "--tracking", "none")
    done = antiphon("run", "five-classes.toml", *settings, *run, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["models"]["cnn"]["steps_learned"] == 3
    tagger, state = load_tagger("runs/five/models/cnn")
    assert tagger.tags == CLASSES
    start, _ = load_tagger("MN04")
    first = (start.backbone.features[0][0].weight - tagger.backbone.features[0][0].weight).abs().max()
    assert 0 < first < 0.05, "it began with the imported weights, and learned"
    assert state["first_weights"]["project"] == "fschmid56/EfficientAT"
    tagged = antiphon("tag", "runs/five/models/cnn", "sounds/dog/0.wav")
    assert tagged.code == 0, tagged.err
