"""`antiphon models import` of folders in the form of Hugging Face's hub, against transformers and timm themselves."""

import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor

from orchestrator.artifacts.hub_folder import find_hub_folder
from tests.hearing import mels, taught
from tests.official import keyed_state, waveform
from workloads.config.architectures import AST, CED, Timm
from workloads.config.recipe import FrontEnd
from workloads.evaluate.predict import load_tagger

DATA = Path(__file__).parents[2] / "data" / "official"
AUDIOSET = (Path(__file__).parents[3] / "workloads" / "data" / "audioset_tags.txt").read_text().splitlines()
CLOSE = 1e-4
TAGS = ["whistle", "bell", "Rain, light"]


def their_ast(stride: int = 10, frames: int = 128, tags: list[str] | None = None) -> Any:
    """transformers' network of AST's tiny size, with weights drawn from their names."""
    transformers = pytest.importorskip("transformers")
    tags = TAGS if tags is None else tags
    config = transformers.ASTConfig(
        **{"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
        **{"frequency_stride": stride, "time_stride": stride, "max_length": frames},
        id2label=dict(enumerate(tags)),
        problem_type="single_label_classification",
    )
    network = transformers.ASTForAudioClassification(config).eval()
    network.load_state_dict(keyed_state({name: list(t.shape) for name, t in network.state_dict().items()}))
    return network


def their_extractor(frames: int = 128, **options: Any) -> Any:
    from transformers import ASTFeatureExtractor

    return ASTFeatureExtractor(max_length=frames, **{"mean": -6.5, "std": 5.25} | options)


def saved(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(("stride", "frames", "seconds"), [(10, 128, 1.0), (16, 512, 5.0)])
def test_an_ast_of_transformers_gives_its_logits(
    antiphon: Any, tmp_path: Path, stride: int, frames: int, seconds: float
) -> None:
    theirs, extractor = their_ast(stride, frames), their_extractor(frames)
    folder = saved(tmp_path / "my-ast", theirs, extractor)
    (folder / "README.md").write_text("---\ntags: [audio]\nlicense: bsd-3-clause\n---\n# A card\n")
    done = antiphon("models", "import", folder, tmp_path / "out", "--json")
    assert done.code == 0, done.err
    imported, (tagger, state) = json.loads(done.out), load_tagger(tmp_path / "out")
    assert tagger.model.arch == AST(family="ast", size="tiny", stride=stride)
    assert tagger.model.front_end == FrontEnd(kind="kaldi128", frames=frames, mean=-6.5, std=10.5)
    assert (imported["name"], tagger.labels, tagger.clip_seconds) == ("my_ast", "single", seconds)
    assert tagger.tags == ("Rain, light", "bell", "whistle")
    assert (state["origin"]["project"], state["origin"]["licence"]) == ("my-ast", "bsd-3-clause")
    x_BT = waveform(seconds, 16_000)
    features = extractor([x.numpy() for x in x_BT], sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        expected_BC = theirs(features).logits[:, [TAGS.index(tag) for tag in tagger.tags]]
        found_BC = tagger.tag(x_BT)
    assert expected_BC.std() > 0.1
    torch.testing.assert_close(found_BC, expected_BC, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("names", ["of files", "in memory"])
def test_a_file_alone_needs_no_family_and_no_folder(antiphon: Any, tmp_path: Path, names: str) -> None:
    """transformers 5 calls tensors in memory otherwise than in files."""
    theirs = their_ast(16, 128, [f"tag {number:02}" for number in range(11)])
    folder = saved(tmp_path / "ast", theirs)
    if names == "in memory":
        save_file(theirs.state_dict(), folder / "model.safetensors")
    (tmp_path / "tags.txt").write_text("".join(f"tag {number:02}\n" for number in range(11)))
    done = antiphon("models", "import", folder / "model.safetensors", tmp_path / "out", "--tags", tmp_path / "tags.txt")
    assert done.code == 0, done.err
    tagger, _ = load_tagger(tmp_path / "out")
    mel_BMF = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected_BC = theirs(mel_BMF.transpose(1, 2)).logits
        found_BC = tagger.backbone(mel_BMF)
    torch.testing.assert_close(found_BC, expected_BC, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate = 8000: this network's is 16000 here"),
        ("preprocessor_config.json", {"num_mel_bins": 64}, "num_mel_bins = 64: this network's is 128 here"),
        ("preprocessor_config.json", {"max_length": 1024}, "max_length = 1024: this network's is 128 here"),
        ("config.json", {"time_stride": 12, "frequency_stride": 12}, "time_stride = 12: must be one of 10, 16"),
        ("config.json", {"frequency_stride": 16}, "frequency_stride = 16: this network's is 10 here"),
        ("config.json", {"num_attention_heads": 6}, "num_attention_heads = 6: this network's is 3 here"),
        ("config.json", {"max_length": 256}, "max_length = 128: this network's is 256 here"),
        ("config.json", {"model_type": "hubert"}, "model_type = 'hubert': cannot be imported; known are"),
        ("config.json", {"id2label": {"0": "a", "2": "b", "1": "b"}}, "config.json: names 2 different tags"),
        ("config.json", {"id2label": {"0": "a", "3": "b"}}, "must number its 2 tags from 0 without gaps"),
        (
            "config.json",
            {"id2label": {"0": "a", "1": " ", "2": "b"}},
            "a class has an empty name; name them with --tags",
        ),
        ("config.json", {"id2label": ["a", "b", "c"]}, "config.json: id2label: input should be a valid dictionary"),
        ("config.json", {"layer_norm_eps": 0.1}, "layer_norm_eps = 0.1: must be at most 1e-05"),
        ("config.json", {"problem_type": "regression"}, "problem_type = 'regression': is no tagger's"),
        ("config.json", {"problem_type": []}, "config.json: problem_type: input should be a valid string"),
        ("config.json", {"time_stride": [10]}, "config.json: time_stride: input should be a valid integer"),
        ("preprocessor_config.json", {"mean": float("nan")}, "mean = nan, std = 5.25: must be finite, std above 0"),
        ("preprocessor_config.json", {"std": 0}, "mean = -6.5, std = 0: must be finite, std above 0"),
        ("config.json", {"id2label": {"0": "LABEL_0"}}, "these weights have 3 classes; name them with --tags FILE"),
    ],
)
def test_what_no_network_here_can_be_is_refused(
    antiphon: Any, ast_folder: Path, tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    before = (ast_folder / file).read_text()
    try:
        change(ast_folder / file, **values)
        done = antiphon("models", "import", ast_folder, tmp_path / "out")
    finally:
        (ast_folder / file).write_text(before)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def ast_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("hub") / "ast", their_ast(), their_extractor())


def test_without_normalisation_there_is_none(antiphon: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "ast", their_ast(), their_extractor(do_normalize=False))
    assert antiphon("models", "import", folder, tmp_path / "out").code == 0
    front_end = load_tagger(tmp_path / "out")[0].model.front_end
    assert (front_end.mean, front_end.std) == (0.0, 1.0)


def test_a_configuration_of_other_bytes_than_utf8_is_refused_and_a_byte_order_mark_is_none_of_them(
    antiphon: Any, ast_folder: Path, tmp_path: Path
) -> None:
    file = ast_folder / "config.json"
    before = file.read_text()
    try:
        file.write_bytes(before.replace("whistle", "Löwe").encode("latin-1"))
        done = antiphon("models", "import", ast_folder, tmp_path / "latin")
        assert done.code == 2
        assert "config.json: is not JSON ('utf-8' codec can't decode byte 0xf6" in " ".join(done.err.split())
        file.write_bytes(before.replace("whistle", "Löwe").encode("utf-8-sig"))
        assert antiphon("models", "import", ast_folder, tmp_path / "marked").code == 0
    finally:
        file.write_text(before)
    assert load_tagger(tmp_path / "marked")[0].tags == ("Löwe", "Rain, light", "bell")


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("license: mit", "mit"),
        ("license: 'cc-by-nc-4.0' # no shops", "cc-by-nc-4.0"),
        ("license:\n- mit\n- apache-2.0", "mit, apache-2.0"),
        ('license: other\nlicense_name: "GPL-3.0 (its cards say Apache-2.0)"', "GPL-3.0 (its cards say Apache-2.0)"),
        ("tags: [audio]", "as the model's card says"),
        ("license: [mit", "as the model's card says"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_card_s_licence_stays(ast_folder: Path, head: str, licence: str, end: str) -> None:
    card = ast_folder / "README.md"
    card.write_bytes(f"---\n{head}\n---\n# Mine\nlicense: none\n".replace("\n", end).encode())
    found = find_hub_folder(str(ast_folder))
    card.unlink()
    assert found is not None
    assert found.licence == licence


def test_a_folder_has_a_name_however_it_is_given(
    antiphon: Any, ast_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "模型.pt"  # the ending is that of a file
    other.symlink_to(ast_folder)
    monkeypatch.chdir(ast_folder)
    for number, (given, project, name) in enumerate(
        [(".", "ast", "ast"), (other, "模型.pt", "pt"), ("../ast/", "ast", "ast")]
    ):
        done = antiphon("models", "import", given, tmp_path / str(number), "--json")
        assert done.code == 0, done.err
        imported = json.loads(done.out)
        assert (imported["origin"]["project"], imported["name"]) == (project, name)


def test_a_folder_of_something_else_says_what_it_is(antiphon: Any, ast_folder: Path, tmp_path: Path) -> None:
    assert antiphon("models", "import", ast_folder, tmp_path / "tagger").code == 0
    (tmp_path / "no-config").mkdir()
    (tmp_path / "no-config" / "net.pth").touch()
    for folder, message in [
        ("tagger", "is a tagger already, or a checkpoint; give it to the commands as it is"),
        ("no-config", "holds no config.json; import a file of weights instead: net.pth"),
    ]:
        done = antiphon("models", "import", tmp_path / folder, tmp_path / "out")
        assert done.code == 2
        assert message in " ".join(done.err.split())
    done = antiphon("models", "import", ast_folder, tmp_path / "out", "--tags", tmp_path / "no-config")
    assert done.code == 2
    assert "is a folder, no file" in " ".join(done.err.split())


def test_a_folder_in_parts_and_another_family_are_refused(antiphon: Any, ast_folder: Path, tmp_path: Path) -> None:
    done = antiphon("models", "import", ast_folder, tmp_path / "out", "--family", "ced")
    assert done.code == 2
    assert "--family ced: config.json in" in " ".join(done.err.split())
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "config.json").write_text("{}")
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("{}")
    done = antiphon("models", "import", tmp_path / "parts", tmp_path / "out")
    assert "its weights are in parts (model.safetensors.index.json)" in " ".join(done.err.split())


def ced_hub(folder: Path, **config: Any) -> Path:
    """CED's hub form: names and shapes of its own code (tests/data/official/ced_tiny_hub.json)."""
    recorded = json.loads((DATA / "ced_tiny_hub.json").read_text())
    folder.mkdir()
    save_file(keyed_state(recorded["shapes"]), folder / "model.safetensors")
    tags = {str(number): name.split(",")[0] for number, name in enumerate(AUDIOSET)}  # as its config.json has them
    values = {"model_type": "ced", "name": "ced-tiny", "pooling": "mean", "n_mels": 64, "id2label": tags}
    (folder / "config.json").write_text(json.dumps(values | config))
    extractor = {"sampling_rate": 16_000, "feature_size": 64, "hop_size": 160, "f_max": None}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return folder


def test_ceds_hub_form_gives_its_logits_and_whole_names(antiphon: Any, tmp_path: Path) -> None:
    done = antiphon("models", "import", ced_hub(tmp_path / "ced-tiny"), tmp_path / "out")
    assert done.code == 0, done.err
    tagger, _ = load_tagger(tmp_path / "out")
    assert tagger.model.arch == CED(family="ced", size="tiny")
    assert tagger.tags == tuple(sorted(AUDIOSET)), "cut names are there twice"
    columns = [tagger.tags.index(tag) for tag in AUDIOSET[:20]]
    expected = json.loads((DATA / "ced_tiny_hub.json").read_text())["logits"]
    with torch.no_grad():
        found_BC = tagger.tag(waveform(10, 16_000))[:, columns]
    torch.testing.assert_close(found_BC, torch.tensor(expected), rtol=0, atol=CLOSE)


def test_another_front_end_than_ceds_is_refused(antiphon: Any, tmp_path: Path) -> None:
    folder = ced_hub(tmp_path / "ced-tiny", n_mels=128)
    done = antiphon("models", "import", folder, tmp_path / "out")
    assert done.code == 2
    assert "config.json: n_mels = 128: this network's is 64 here" in " ".join(done.err.split())


def timm_hub(folder: Path, name: str, **options: Any) -> Any:
    network = timm.create_model(name, num_classes=3, **options).eval()
    network.load_state_dict(keyed_state({name: list(t.shape) for name, t in network.state_dict().items()}))
    size = (options.get("in_chans", 3), 128, 256)
    if name.startswith("resnet"):  # has batch norm
        taught(network, mels(*size[1:], kinds=3).unsqueeze(1).expand(-1, size[0], -1, -1), kinds=3)
    config = {"label_names": TAGS}
    save_for_hf(network, str(folder), model_config=config, data_config={"input_size": size}, safe_serialization=True)
    return network


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {"img_size": (128, 256), "depth": 2, "reg_tokens": 1}),
        ("convnext_atto", {"depths": (1, 1, 2, 1)}),
    ],
)
def test_a_folder_of_timms_that_was_trained_on_sound(
    antiphon: Any, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    theirs = timm_hub(tmp_path / "net", name, in_chans=1, **options)
    done = antiphon("models", "import", tmp_path / "net", tmp_path / "out")
    assert done.code == 0, done.err
    tagger, _ = load_tagger(tmp_path / "out")
    own = {key: value for key, value in options.items() if key != "img_size"}
    arch = tagger.model.arch
    assert isinstance(arch, Timm)
    assert (arch.name, {key: arch.args.get(key) for key in own}) == (name, own)
    assert tagger.model.front_end == FrontEnd(kind="kaldi128", frames=256)
    assert tagger.tags == ("Rain, light", "bell", "whistle")
    mel_BMF = mels(128, 256, kinds=3)
    with torch.no_grad():
        expected_BC: Tensor = theirs(mel_BMF.unsqueeze(1))[:, [2, 1, 0]]
        torch.testing.assert_close(tagger.backbone(mel_BMF), expected_BC, rtol=1e-5, atol=CLOSE)
    assert expected_BC.std(dim=0).max() > 0.05


def test_other_heads_than_the_network_s_are_refused(antiphon: Any, tmp_path: Path) -> None:
    """Shapes do not show the number of heads; the logits of another are others."""
    done = antiphon("models", "import", ced_hub(tmp_path / "ced-tiny", num_heads=6), tmp_path / "out")
    assert done.code == 2
    message = " ".join(done.err.split())
    assert "num_heads = 6, as config.json says: the network that is 192 wide has 3 here" in message


def test_model_args_say_how_many_channels_and_frames_timms_network_hears(antiphon: Any, tmp_path: Path) -> None:
    """timm itself writes the size of images where only the network's arguments were changed."""
    name, args = "vit_tiny_patch16_224", {"img_size": [128, 256], "in_chans": 1, "depth": 1}
    timm_hub(tmp_path / "net", name, **args)
    described = json.loads((tmp_path / "net" / "config.json").read_text())
    described["pretrained_cfg"]["input_size"] = [3, 224, 224]
    (tmp_path / "net" / "config.json").write_text(json.dumps(described | {"model_args": args}))
    done = antiphon("models", "import", tmp_path / "net", tmp_path / "out")
    assert done.code == 0, done.err
    assert load_tagger(tmp_path / "out")[0].model.front_end.frames == 256
    change(tmp_path / "net" / "config.json", label_names=["a", "b"])
    done = antiphon("models", "import", tmp_path / "net", tmp_path / "other")
    assert done.code == 2
    assert "config.json: names 2 different tags, the weights have 3 classes" in " ".join(done.err.split())


def test_a_folder_of_images_becomes_no_tagger_but_an_init(antiphon: Any, tmp_path: Path) -> None:
    timm_hub(tmp_path / "net", "resnet10t")
    done = antiphon("models", "import", tmp_path / "net", tmp_path / "out")
    assert done.code == 2
    message = " ".join(done.err.split())
    assert "weights of images (3 channels) are no tagger; to start from them, put init = 'FILE'" in message
    assert 'family = "timm", name = "resnet10t"' in message


@pytest.mark.parametrize("family", ["dymn", "vit"])
def test_a_family_is_guessed_where_only_one_fits(antiphon: Any, tmp_path: Path, family: str) -> None:
    if family == "dymn":  # MN's reader reads it too
        state = keyed_state(json.loads((DATA / "dymn04.json").read_text())["shapes"])
    else:  # has CED's mark and timm's
        state = timm.create_model("vit_tiny_patch16_224", in_chans=1, img_size=(128, 128), num_classes=527).state_dict()
    torch.save({"model": state}, tmp_path / "file.pt")
    done = antiphon("models", "import", tmp_path / "file.pt", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["model"]["arch"]["family"] == family


def test_what_no_family_reads_is_refused_with_the_nearest(antiphon: Any, tmp_path: Path) -> None:
    state = keyed_state(json.loads((DATA / "ced_tiny_10s.json").read_text())["shapes"])
    torch.save(state | {"odd": torch.zeros(1)}, tmp_path / "odd.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    for file, message in (
        (
            "odd.pt",
            "odd.pt: is no network of a known family (mn, dymn, frame_mn, ced, passt, eat, ast, timm, wav2vec2); near",
        ),
        ("other.pt", "other.pt: is no network of a known family"),
    ):
        done = antiphon("models", "import", tmp_path / file, tmp_path / "out")
        assert done.code == 2
        assert message in " ".join(done.err.split())
        assert ("ced: these weights do not fit" in done.err) == (file == "odd.pt")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "weights 'file.pt': outputlayer.1.bias holds numbers that are not finite; use another file"),
        ("twice", "weights 'file.pt': holds several networks, under 'student.', 'teacher.'; save one of them alone"),
        ("none", "weights 'file.pt': no state dict at the top level"),
    ],
)
def test_what_is_wrong_with_a_known_network_is_said_where_its_family_is_guessed(
    antiphon: Any, tmp_path: Path, fault: str, message: str
) -> None:
    state = keyed_state(json.loads((DATA / "ced_tiny_10s.json").read_text())["shapes"])
    if fault == "nan":
        state["outputlayer.1.bias"][0] = float("nan")
    elif fault == "twice":
        state = {f"{name}.{key}": tensor for name in ("student", "teacher") for key, tensor in state.items()}
    torch.save({"epoch": 3} if fault == "none" else state, tmp_path / "file.pt")
    done = antiphon("models", "import", tmp_path / "file.pt", tmp_path / "out")
    assert done.code == 2
    assert message in " ".join(done.err.split())


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as downloading a repository takes: its list of files, and each file."""

    folder: Path
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        file = self.folder / path.rsplit("/", 1)[-1]
        if path.startswith("/api/models/org/net/tree/"):
            files = [{"path": path.name, "size": path.stat().st_size} for path in self.folder.iterdir()]
            tree = [file | {"type": "file", "oid": "0" * 40} for file in files]
            self._send(200, json.dumps(tree).encode(), with_body)
        elif path.startswith("/api/models/org/net"):
            names = [{"rfilename": path.name} for path in self.folder.iterdir()]
            body = json.dumps({"id": "org/net", "sha": self.commit, "siblings": names}).encode()
            self._send(200, body, with_body)
        elif path.startswith("/org/net/resolve/") and file.is_file():
            self._send(200, file.read_bytes(), with_body)
        else:
            self._send(404, b"{}", with_body)

    def _send(self, status: int, body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for header, value in (
            *(("Content-Length", str(len(body))), ("Content-Type", "application/json")),
            *(("ETag", f'"{hashlib.sha1(body).hexdigest()}"'), ("X-Repo-Commit", self.commit)),
        ):
            self.send_header(header, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on this machine, whose repository org/net is the folder."""
    (tmp_path / "repository").mkdir()
    handler = type("OneRepository", (Hub,), {"folder": tmp_path / "repository"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    address = f"http://127.0.0.1:{server.server_port}"
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path / "repository"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_id_is_downloaded(antiphon: Any, hub: Path, tmp_path: Path) -> None:
    theirs = timm_hub(hub, "resnet10t", in_chans=1)
    done = antiphon("models", "import", "hf://org/net", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    imported, (tagger, _) = json.loads(done.out), load_tagger(tmp_path / "out")
    assert (imported["name"], imported["origin"]["project"]) == ("net", "org/net")
    assert torch.equal(tagger.backbone.net.conv1[0].weight, theirs.conv1[0].weight)
    done = antiphon("models", "import", "hf://org/other", tmp_path / "other")
    assert done.code == 2
    message = " ".join(done.err.split())
    assert "hf://org/other: cannot be downloaded (" in message
    assert "404" in message


def test_a_download_whose_connection_is_lost_says_what_to_do(
    antiphon: Any, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm_hub(hub, "resnet10t", in_chans=1)
    whole = Hub._send

    def lost(self: Hub, status: int, body: bytes, with_body: bool) -> None:
        if with_body and self.path.endswith("model.safetensors"):
            self.close_connection = True  # without an answer
        else:
            whole(self, status, body, with_body)

    monkeypatch.setattr(Hub, "_send", lost)
    done = antiphon("models", "import", "hf://org/net", tmp_path / "out")
    assert done.code == 2
    message = " ".join(done.err.split())
    assert "hf://org/net: cannot be downloaded (Server disconnected" in message
    assert "`hf download org/net --local-dir FOLDER`" in message
    monkeypatch.setattr(Hub, "_send", whole)
    assert antiphon("models", "import", "hf://org/net", tmp_path / "out").code == 0, "nothing of it is in the way"


def test_without_a_network_a_hub_id_says_what_to_do(
    antiphon: Any, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        done = antiphon("models", "import", "hf://org/net", tmp_path / "out")
    assert done.code == 2
    message = " ".join(done.err.split())
    assert "hf://org/net: cannot be downloaded (" in message
    assert "`hf download org/net --local-dir FOLDER`" in message
    for wrong in ("hf://net", "hf://org/net/model.safetensors", "hf://org/ne t"):
        done = antiphon("models", "import", wrong, tmp_path / "out")
        assert done.code == 2
        assert "a hub id is hf://org/name, or hf://org/name@revision" in " ".join(done.err.split())
