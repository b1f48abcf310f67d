"""`antiphon export --to hub` of taggers that transformers has no class for: folders with code that needs only torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from orchestrator.artifacts.export_hub import export_hub
from orchestrator.artifacts.tag import load_for_tagging
from tests.hearing import sounds
from tests.official import waveform
from tests.serving import ARCHITECTURES, RATE, TAGS, publish
from workloads.config.architectures import AST, CED, MN, DyMN, OnDevice, PaSST, Timm, Wav2Vec2
from workloads.config.recipe import FrontEnd, Model
from workloads.evaluate.predict import load_tagger
from workloads.evaluate.sounds import hear_sound
from workloads.export.hub_code import difference_from_code, hub_network
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint

pytest.importorskip("transformers", reason="no transformers; pip install 'antiphon[hub]'")

VIT = Model(arch=ARCHITECTURES["vit"])
WAVEFORMS = Model(
    arch=Wav2Vec2(family="wav2vec2", dim=32, depth=1, heads=2, channels=16, norm="layer"),
    front_end=FrontEnd(kind="waveform16k_norm"),
)
# In a process that has torch and transformers, and nothing of ours nor what our networks are made of
PROGRAM = """
import json, sys
for name in ("workloads", "orchestrator", "cluster", "timm", "torchvision"):
    sys.modules[name] = None
import soundfile
from transformers import pipeline
tagger = pipeline("audio-classification", model=sys.argv[1], trust_remote_code=True, top_k=None)
found = {}
for path in sys.argv[2:]:
    x_T, rate = soundfile.read(path, dtype="float32")
    found[path] = {one["label"]: one["score"] for one in tagger({"raw": x_T, "sampling_rate": rate})}
print(json.dumps(found))
"""


def heard(tagger: Tagger, x_T: Tensor, long_clips: str = "windows") -> Tensor:
    return hear_sound(tagger, x_T, long_clips).logits_C


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForAudioClassification

    return AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small ViT, and the folder that was exported of it."""
    folder = tmp_path_factory.mktemp("vit")
    tagger = publish("vit", folder, VIT)
    export_hub(str(tagger), folder / "hub")
    return tagger, folder / "hub"


def test_a_pipeline_without_antiphon_says_what_antiphon_tag_says(exported: tuple[Path, Path], tmp_path: Path) -> None:
    folder, hub = exported
    written = {}
    for seconds in (0.3, 1.0, 5.0, 17.3):
        written[str(tmp_path / f"{seconds}.wav")] = x_T = waveform(seconds, RATE)[1]
        soundfile.write(tmp_path / f"{seconds}.wav", x_T.numpy(), RATE, subtype="FLOAT")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", PROGRAM, str(hub), *written]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    tagger = load_for_tagging(str(folder)).tagger
    said_BC = torch.tensor([[found[path][tag] for tag in TAGS] for path in written])
    expected_BC = torch.stack([heard(tagger, x_T).sigmoid() for x_T in written.values()])
    torch.testing.assert_close(said_BC, expected_BC, atol=1e-5, rtol=0)
    assert said_BC.std(dim=0).max() > 0.05, "they depend on the sound"


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        (WAVEFORMS, 16_000),  # its padding is no sound
        *(
            pytest.param(Model(arch=arch, front_end=FrontEnd(kind=kind)), rate, marks=pytest.mark.slow)
            for arch, kind, rate in (
                (MN(family="mn", width=0.1), "efficientat128", 48_000),  # resampled
                (AST(family="ast", size="tiny", stride=16, frame_pool="max"), "kaldi128", 16_000),
                (CED(family="ced"), "ced64", 16_000),
                (DyMN(family="dymn", width=0.1, temperature=1.0), "efficientat128", 32_000),
                (OnDevice(family="ondevice", variant="crnn"), "logmel40", 16_000),
                (OnDevice(family="ondevice", variant="lstm_p"), "logmel40", 16_000),
                (PaSST(family="passt", depth=1), "efficientat128", 32_000),
                (Timm(family="timm", name="resnet10t"), "logmel64", 16_000),
            )
        ),
    ],
)
def test_logits_of_a_batch_are_those_of_each_sound(antiphon: Any, tmp_path: Path, model: Model, rate: int) -> None:
    from transformers import AutoFeatureExtractor

    folder = publish("tagger", tmp_path, model, rate=rate)
    done = antiphon("export", folder, tmp_path / "hub", "--to", "hub", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert result["largest_difference"] < 1e-4
    assert result["own_code"].endswith(("has no class in transformers", "reads its special tokens alone"))
    tagger, _ = load_tagger(folder)
    x_BT = sounds(2.6, rate, kinds=len(TAGS))
    clips = [x_T[: round(seconds * rate)] for x_T, seconds in zip(x_BT, (0.3, 1.0, 2.6), strict=False)]
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "hub")
    inputs = extractor([x_T.numpy() for x_T in clips], sampling_rate=rate, padding=True, return_tensors="pt")
    with torch.no_grad():
        found_BC = loaded(tmp_path / "hub")(**inputs).logits
    expected_BC = torch.stack([heard(tagger, x_T) for x_T in clips])
    torch.testing.assert_close(found_BC, expected_BC, atol=1e-4, rtol=0)
    assert expected_BC.std(dim=0).max() > 0.05, "its logits depend on the sound"


@pytest.mark.parametrize("long_clips", ["start", pytest.param("windows", marks=pytest.mark.slow)])
def test_the_folder_comes_back_as_the_same_tagger(antiphon: Any, tmp_path: Path, long_clips: str) -> None:
    tags = ("Löwe", "Rain, light", 'saw "big"')
    folder = publish("my_vit", tmp_path, VIT, tags=tags, clip_seconds=0.7)
    state = checkpoint.read_state(folder) | {"labels": "single", "long_clips": long_clips}
    folder = checkpoint.write(
        tmp_path / "own", tensors={"weights": checkpoint.read_tensors(folder, "weights")}, state=state
    )
    assert antiphon("export", folder, tmp_path / "hub", "--to", "hub").code == 0
    card = tmp_path / "hub" / "README.md"
    card.write_text(card.read_text().replace("license: unknown", "license: cc-by-nc-4.0"))
    done = antiphon("models", "import", tmp_path / "hub", tmp_path / "back", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["origin"]["licence"] == "cc-by-nc-4.0"
    (ours, own), (back, again) = load_tagger(folder), load_tagger(tmp_path / "back")
    kept = ("name", "tags", "labels", "clip_seconds", "clip_rate", "long_clips")
    assert [again[key] for key in kept] == [own[key] for key in kept]
    expected, found = ours.state_dict(), back.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    x_T = waveform(2.0, RATE)[0]
    with torch.no_grad():
        logits_BC = loaded(tmp_path / "hub")(x_T[None]).logits
    torch.testing.assert_close(logits_BC[0], heard(ours, x_T, long_clips), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("words", "change", "problem"),
    [
        (("--tags", "tags.txt"), {}, "--tags tags.txt: config.json in 'hub' says it"),
        (("--labels", "single"), {}, "--labels single: config.json in 'hub' says it"),
        (("--family", "mn"), {}, "--family mn: config.json in 'hub' says that it is vit"),
        (("--name", "My ViT"), {}, "--name 'My ViT'"),
        ((), {"problem_type": "regression"}, "config.json: problem_type"),
        ((), {"id2label": {"0": "dog", "1": "rain"}}, "wrong shape: head.weight is (3, 16), must be (2, 16)"),
        (
            (),
            {"id2label": {"0": "dog", "1": "rain", "2": "dog"}},
            "id2label: its 3 tags must have names, each another one",
        ),
        ((), {"id2label": {"0": "dog", "1": " ", "2": "saw"}}, "id2label: its 3 tags must have names"),
        ((), {"antiphon": {"name": "vit"}}, "config.json: antiphon.model: field required"),
        ((), {"antiphon": {"model": {}}}, "config.json: antiphon.model.arch: field required"),
        (
            (),
            {"antiphon": {"model": {"arch": "vit"}}},
            "config.json: antiphon.model.arch: input should be a valid dict",
        ),
        ((), {"antiphon": {"long_clips": "end"}}, "config.json: antiphon.long_clips: input should be 'windows' or"),
        (
            (),
            {"antiphon": {"clip_seconds": -1.0}},
            "config.json: antiphon.clip_seconds: input should be greater than 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    exported: tuple[Path, Path], antiphon: Any, tmp_path: Path, words: Any, change: dict[str, Any], problem: str
) -> None:
    hub = shutil.copytree(exported[1], tmp_path / "hub")
    config = json.loads((hub / "config.json").read_text())
    own = change.get("antiphon", {})
    if own and "name" not in own:  # a change of what is there
        change = {"antiphon": config["antiphon"] | own}
    (hub / "config.json").write_text(json.dumps(config | change))
    done = antiphon("models", "import", hub, tmp_path / "back", *words)
    assert done.code == 2
    assert problem in done.err
    assert not (tmp_path / "back").exists()


def test_code_of_another_tagger_fails_the_check(exported: tuple[Path, Path]) -> None:
    folder, hub = exported
    tagger, _ = load_tagger(folder)
    assert difference_from_code(tagger, hub, long_clips="windows") < 1e-5
    tagger.mean += 0.1
    with pytest.raises(ValueError, match=r"differ from this tagger's by .*; the folder is not written"):
        difference_from_code(tagger, hub, long_clips="windows")


def test_the_source_of_a_network_names_all_of_its_tensors(exported: tuple[Path, Path]) -> None:
    tagger, _ = load_tagger(exported[0])
    network = hub_network(tagger)
    assert set(tagger.state_dict()) <= set(network.tensors)
    assert [name for name in network.tensors if repr(name) not in network.source] == ["backbone.grid"]
    assert network.learned == {name for name, _ in tagger.named_parameters()}
