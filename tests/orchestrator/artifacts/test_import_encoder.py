"""`antiphon models import` of networks that know no tags: a file from which a recipe's model starts."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.recipes.loader import load_recipe
from tests.workloads.models.test_wav2vec2 import of_fairseq, of_torchaudio, waveforms
from workloads.config.architectures import Wav2Vec2
from workloads.models.initial_weights import build_initial_tagger
from workloads.models.official.wav2vec2 import convert
from workloads.runtime.opener import LocalFiles


@pytest.fixture
def theirs() -> Any:
    return of_torchaudio("layer", dim=64, letters=5)


def published(theirs: Any, form: str, folder: Path) -> Path:
    """The weights as a project publishes them, with what else its files hold."""
    state = theirs.state_dict()
    if form == "torchaudio":
        torch.save(state, folder / "wav2vec2.pth")
    else:
        torch.save({"model": of_fairseq(state), "args": None, "best_loss": 2.0}, folder / "wav2vec2.pth")
    return folder / "wav2vec2.pth"


@pytest.mark.parametrize("form", ["torchaudio", "fairseq"])
def test_the_printed_settings_start_a_model_from_the_imported_file(
    form: str, theirs: Any, tmp_path: Path, antiphon: Any
) -> None:
    file, out = published(theirs, form, tmp_path), tmp_path / "xlsr.safetensors"
    done = antiphon("models", "import", file, out, "--family", "wav2vec2")
    assert done.code == 0, done.err
    line = next(line for line in done.out.replace("\n", " ").split("in a recipe's model  ")[1:])
    settings = tomllib.loads(f"model = {{ {' '.join(line.split())} }}")["model"]
    assert settings["front_end"] == {"kind": "waveform16k_norm"}
    model = json.dumps(settings).replace('": ', '" = ')
    schedule = "schedule={kind='mutual', burn_in=0, steps=2}"
    recipe = load_recipe("demo", [f"models={{speech = {model}}}", "edges=[]", "compare=false", schedule])
    assert recipe.models["speech"].arch == Wav2Vec2(
        family="wav2vec2", dim=64, depth=2, heads=1, norm="layer", channels=16
    )
    tagger = build_initial_tagger(recipe, "speech", tags=("a", "b"), files=LocalFiles()).eval()
    assert tagger.newly_initialised == ("head.weight", "head.bias")
    x_BT = waveforms()
    with torch.no_grad():
        expected_BPD = theirs.encoder(theirs.feature_extractor(x_BT, None)[0])
        found_BPD = tagger.backbone.outputs(x_BT.unsqueeze(1)).sequence_BPD
    torch.testing.assert_close(found_BPD, expected_BPD, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dim", "heads"), [(768, 12), (1024, 16), (1280, 16)])
def test_the_number_of_heads_follows_from_the_width(dim: int, heads: int) -> None:
    """torchaudio's pipelines: XLS-R of 1 billion parameters has heads 80 wide."""
    state = of_torchaudio("layer", dim=dim).state_dict()
    found = convert(state).model.arch
    assert isinstance(found, Wav2Vec2)
    assert (found.dim, found.heads) == (dim, heads)
    wider = state | {"encoder.feature_projection.projection.weight": torch.zeros(1088, 16)}
    with pytest.raises(ValueError, match="is 1088 wide: no published network is"):
        convert(wider)


def test_what_is_left_out_is_named(theirs: Any, tmp_path: Path, antiphon: Any) -> None:
    file, out = published(theirs, "fairseq", tmp_path), tmp_path / "xlsr.safetensors"
    done = antiphon("models", "import", file, out, "--family", "wav2vec2", "--json")
    found = json.loads(done.out)
    assert {"mask_emb", "quantizer.vars", "final_proj.weight"} < set(found["dropped"])
    assert found["origin"]["project"] == "facebookresearch/fairseq"
    assert found["params"] == sum(tensor.numel() for name, tensor in theirs.state_dict().items() if "aux" not in name)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("folder", [], "so they become a file for init, no tagger; its name must end in .safetensors"),
        ("x.safetensors", ["--tags", "tags.txt"], "--tags tags.txt: is for networks that know tags"),
        ("x.safetensors", ["--labels", "single"], "--labels single: is for networks that know tags"),
    ],
)
def test_what_belongs_to_taggers_is_refused(
    out: str, options: list[str], message: str, tmp_path: Path, antiphon: Any
) -> None:
    done = antiphon("models", "import", tmp_path / "no-file.pt", tmp_path / out, "--family", "wav2vec2", *options)
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_weights_of_another_network_are_refused(tmp_path: Path, antiphon: Any) -> None:
    torch.save(of_torchaudio("group").state_dict(), tmp_path / "narrow.pt")
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "other.pt")
    for file, message in (("narrow.pt", "is 32 wide: no published network is"), ("other.pt", "no tensor is named")):
        done = antiphon("models", "import", tmp_path / file, tmp_path / "x.safetensors", "--family", "wav2vec2")
        assert done.code == 2
        assert message in " ".join(done.err.split())
