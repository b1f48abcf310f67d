"""`antiphon models import`: the imported tagger tags files, teaches, and initializes models."""

import io
import json
import os
import pickle
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import save_file

from orchestrator.artifacts.import_weights import import_weights
from orchestrator.artifacts.weights_file import find_weights
from tests.commands import Done, first_tagger
from tests.efficientat import DATA, case
from tests.official import keyed_state, waveform
from workloads.data.synthetic import SYNTHESIZERS
from workloads.evaluate.predict import load_tagger
from workloads.models.initial_weights import build_initial_tagger
from workloads.models.official import ast, efficientat, timm
from workloads.runtime.checkpoint import file_digest
from workloads.runtime.opener import LocalFiles
from workloads.train import loop

MN04 = '{family="mn", width=0.4}'
LIST = Path(__file__).parents[3] / "workloads" / "data" / "audioset_tags.txt"
AUDIOSET = LIST.read_text().splitlines()  # as published: class 0 is speech
UNSORTED = sorted(
    SYNTHESIZERS, reverse=True
)  # the ten tags of the embedded data set; data sets are sorted the other way


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """MN at width 0.4 as a training program saves it: in a container, under DataParallel's names."""
    path = tmp_path_factory.mktemp("published") / "mn04_as_mAP_432.pt"
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in case("mn04").state.items()}}, path
    )
    return path


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory) -> Path:
    """The same network with a head for ten classes, as a bare safetensors file."""
    path = tmp_path_factory.mktemp("published") / "ten.safetensors"
    save_file(case("mn04", **{"classifier.5.weight": [10, 512], "classifier.5.bias": [10]}).state, path)
    return path


def mistake(done: Done) -> str:
    assert done.code == 2, done
    assert done.out == ""
    (line,) = done.err.strip().splitlines()
    return line


def imported_as(model: str, folder: Path) -> list[str]:
    """The settings that make a model of a recipe start from an imported MN."""
    return [
        f"models.{model}.arch={MN04}",
        f'models.{model}.front_end={{kind="efficientat128"}}',
        f"models.{model}.init={folder}",
    ]


def test_an_imported_tagger_gives_the_logits_of_the_official_code(antiphon, weights, tmp_path):
    done = antiphon("models", "import", "--family", "mn", weights, tmp_path / "mn04", "--json")
    assert done.code == 0, done.err
    imported = json.loads(done.out)
    assert (imported["name"], imported["tags"], imported["params"]) == ("mn04_as_map_432", 527, 983_599)
    assert imported["model"]["arch"]["width"] == 0.4
    tagger, state = load_tagger(tmp_path / "mn04")
    assert state["labels"] == "multi"
    assert state["tags"] == sorted(AUDIOSET)  # like the tags of data sets; the head's rows are in the same order
    columns = [tagger.tags.index(tag) for tag in AUDIOSET[:20]]
    with torch.no_grad():
        logits_BC = tagger.tag(waveform(10, 32_000))[:, columns]
    torch.testing.assert_close(logits_BC, case("mn04").logits_BC, rtol=0, atol=1e-4)
    assert imported["origin"] == state["origin"]
    assert state["origin"] == {
        "project": "fschmid56/EfficientAT",
        "family": "mn",
        "file": weights.name,
        "sha256": file_digest(weights),
        "licence": "MIT",
        "imported_with": f"antiphon {version('antiphon')}",
    }


@pytest.mark.parametrize(
    ("family", "network", "strides"),
    [("mn", "mn04_fc_s2221", "2221"), ("mn", "mn10_attention", "2222"), ("dymn", "dymn04", "2222")],
)
def test_every_kind_of_head_keeps_its_tags(antiphon, tmp_path, family, network, strides):
    save_file(case(network).state, tmp_path / f"{network}.safetensors")
    arguments = ["--family", family, "--strides", strides, tmp_path / f"{network}.safetensors", tmp_path / "out"]
    done = antiphon("models", "import", *arguments)
    assert done.code == 0, done.err
    tagger, _ = load_tagger(tmp_path / "out")
    columns = [tagger.tags.index(tag) for tag in AUDIOSET[:20]]
    with torch.no_grad():
        logits_BC = tagger.tag(waveform(10, 32_000))[:, columns]
    torch.testing.assert_close(logits_BC, case(network).logits_BC, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "network"), [("ced", "ced_tiny_10s"), ("ast", "ast_tiny_16")])
def test_weights_of_other_projects_are_imported_too(antiphon, tmp_path, family, network):
    recorded = json.loads((DATA / f"{network}.json").read_text())
    torch.save(keyed_state(recorded["shapes"]), tmp_path / "theirs.pth")
    done = antiphon("models", "import", "--family", family, tmp_path / "theirs.pth", tmp_path / "out")
    assert done.code == 0, done.err
    tagger, state = load_tagger(tmp_path / "out")
    assert (state["origin"]["project"], state["name"]) == (recorded["project"], "theirs")
    columns = [tagger.tags.index(tag) for tag in AUDIOSET[:20]]
    with torch.no_grad():
        logits_BC = tagger.tag(waveform(10, 16_000))[:, columns]
    torch.testing.assert_close(logits_BC, torch.tensor(recorded["logits"]), rtol=0, atol=1e-4)


def test_an_imported_tagger_tags_a_file(antiphon, weights, tmp_path):
    done = antiphon("models", "import", "--family", "mn", weights, tmp_path / "mn04", "--name", "small")
    assert done.code == 0, done.err
    assert done.out.startswith("small: mn (width 0.4, ")
    soundfile.write(tmp_path / "tone.wav", waveform(10, 32_000)[0].numpy(), 32_000, subtype="FLOAT")
    tagged = antiphon("tag", tmp_path / "mn04", tmp_path / "tone.wav", "--top", "527", "--json")
    assert tagged.code == 0, tagged.err
    found = dict(json.loads(tagged.out)["files"][str(tmp_path / "tone.wav")])
    expected_C = torch.sigmoid(case("mn04").logits_BC[0])
    assert [found[tag] for tag in AUDIOSET[:20]] == pytest.approx(expected_C.tolist(), abs=1e-4)


def test_a_recipe_with_other_tags_starts_from_it(antiphon, weights, tmp_path, tiny, start):
    assert antiphon("models", "import", "--family", "mn", weights, tmp_path / "mn04").code == 0
    run = start(tiny("demo", *imported_as("cnn", tmp_path / "mn04")))
    tagger = first_tagger(run, "cnn")
    assert tagger.newly_initialised == ("classifier.3.weight", "classifier.3.bias")
    assert tagger.tags == tuple(sorted(SYNTHESIZERS))
    published = case("mn04").state
    assert torch.equal(tagger.backbone.features[0][0].weight, published["features.0.0.weight"])
    assert torch.equal(tagger.backbone.classifier[0].weight, published["classifier.2.weight"])


def test_it_teaches_a_recipe_with_its_tags(antiphon, ten_classes, tmp_path, tiny, start):
    (tmp_path / "tags.txt").write_text("\n".join(UNSORTED) + "\n")
    arguments = ["--family", "mn", ten_classes, tmp_path / "ten", "--tags", tmp_path / "tags.txt"]
    assert antiphon("models", "import", *arguments).code == 0
    recipe = tiny("one-way", *imported_as("cnn", tmp_path / "ten"), "schedule.teacher_steps=0", "schedule.steps=2")
    run = start(recipe)
    assert loop(run) == "done"
    taught, state = load_tagger(run.session.work_dir.parent / "models" / "cnn")
    imported, _ = load_tagger(tmp_path / "ten")
    assert state["tags"] == sorted(UNSORTED)
    for name, tensor in imported.state_dict().items():
        assert torch.equal(taught.state_dict()[name], tensor), name


def test_tags_come_from_a_csv_too(antiphon, ten_classes, tmp_path):
    rows = [f'{number},/m/{number},"{tag}, loud"' for number, tag in enumerate(UNSORTED)]
    (tmp_path / "tags.csv").write_text("\n".join(["index,mid,display_name", *rows]))
    arguments = ["--family", "mn", ten_classes, tmp_path / "ten", "--tags", tmp_path / "tags.csv"]
    assert antiphon("models", "import", *arguments).code == 0
    _, state = load_tagger(tmp_path / "ten")
    assert state["tags"] == sorted(f"{tag}, loud" for tag in UNSORTED)


@pytest.mark.parametrize(
    ("network", "arch"), [("mn04", MN04), ("dymn04", '{family="dymn", width=0.4}')], ids=["mn", "dymn"]
)
def test_imagenet_weights_initialize_a_model_by_way_of_a_thousand_names(antiphon, tmp_path, tiny, start, network, arch):
    """As in the recipes of EfficientAT: classes are named by their numbers, the last layer is initialized at random."""
    head = {"classifier.5.weight": [1000, 512], "classifier.5.bias": [1000]}
    state, family = case(network, **head).state, network[:-2]
    torch.save(state, tmp_path / f"{network}_im.pt")
    (tmp_path / "classes.txt").write_text("".join(f"{number}\n" for number in range(1000)))
    words = ("--family", family, "--labels", "single", "--tags", tmp_path / "classes.txt")
    done = antiphon("models", "import", tmp_path / f"{network}_im.pt", tmp_path / "im", *words)
    assert done.code == 0, done.err
    settings = [f"models.cnn.arch={arch}", 'models.cnn.front_end={kind="efficientat128"}']
    tagger = first_tagger(start(tiny("demo", *settings, f"models.cnn.init={tmp_path}/im")), "cnn")
    assert tagger.newly_initialised == ("classifier.3.weight", "classifier.3.bias")
    assert torch.equal(tagger.backbone.classifier[0].weight, state["classifier.2.weight"])
    assert getattr(tagger.backbone, "temperature", 30) == 30


@pytest.mark.parametrize(("words", "labels"), [([], "multi"), (["--labels", "single"], "single")])
def test_labels_are_set_by_the_option(antiphon, ten_classes, tmp_path, words, labels):
    (tmp_path / "tags.txt").write_text("\n".join(UNSORTED) + "\n")
    arguments = ["--family", "mn", ten_classes, tmp_path / "ten", "--tags", tmp_path / "tags.txt", *words]
    done = antiphon("models", "import", *arguments)
    assert done.code == 0, done.err
    assert f"10 tags ({labels})" in done.out
    tagger, state = load_tagger(tmp_path / "ten")
    assert (tagger.labels, state["labels"]) == (labels, labels)


@pytest.mark.parametrize(("words", "labels"), [([], "single"), (["--labels", "multi"], "multi")])
def test_an_ast_of_esc50_has_single_labels(antiphon, tmp_path, words, labels):
    torch.save(keyed_state(json.loads((DATA / "ast_tiny_esc50.json").read_text())["shapes"]), tmp_path / "esc50.pth")
    (tmp_path / "tags.txt").write_text("\n".join(f"tag {number}" for number in range(50)))
    arguments = ["--family", "ast", tmp_path / "esc50.pth", tmp_path / "out", "--tags", tmp_path / "tags.txt", *words]
    done = antiphon("models", "import", *arguments, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["labels"] == labels
    assert load_tagger(tmp_path / "out")[1]["labels"] == labels


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(antiphon, tmp_path, value):
    state = case("mn04").state
    state["features.9.block.0.0.weight"][3, 0] = value
    torch.save(state, tmp_path / "lost.pt")
    message = mistake(antiphon("models", "import", "--family", "mn", tmp_path / "lost.pt", tmp_path / "out"))
    assert "lost.pt': features.9.block.0.0.weight holds numbers that are not finite" in message
    assert not (tmp_path / "out").exists()


class Boobytrap:
    """What an unpickler that runs code would print."""

    def __reduce__(self):
        return print, ("code of the file has run",)


@pytest.mark.parametrize("ending", ["pt", "pth", "bin"])
def test_a_file_that_needs_code_is_refused_unread(antiphon, tmp_path, ending):
    torch.save({"state_dict": case("mn04").state, "config": Boobytrap()}, tmp_path / f"mn04.{ending}")
    done = antiphon("models", "import", "--family", "mn", tmp_path / f"mn04.{ending}", tmp_path / "out")
    message = mistake(done)
    assert "wants to run code when it is loaded (builtins.print), which no weights need; refused" in message
    assert "python" not in message  # no advice to load it otherwise
    assert "code of the file has run" not in done.err
    assert not (tmp_path / "out").exists()


class Command:
    """What a pickle bomb holds."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def saved(value: Any, *, zipped: bool) -> bytes:
    """As torch saves files, or as it did before they were zip archives."""
    torch.save(value, file := io.BytesIO(), _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def test_a_table_of_tables_that_hold_one_another_is_searched_once(tmp_path):
    tables: dict = {}
    tables.update({f"k{number}": tables for number in range(300)})
    torch.save({"model": tables}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"no state dict at the top level or under"):
        import_weights(str(tmp_path / "odd.pt"), str(tmp_path / "out"), family="mn")


def test_a_bomb_in_a_damaged_archive_is_refused_in_one_line(tmp_path):
    content = bytearray(saved(Command(), zipped=True))
    at = content.index(b"system")
    content[at : at + 6] = b"mkfifo"  # the checksum of data.pkl is wrong now
    (tmp_path / "bomb.pt").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"bomb.pt'?: (wants to run code|not a file)"):
        import_weights(str(tmp_path / "bomb.pt"), str(tmp_path / "out"), family="mn")


def test_a_prefix_that_ends_like_asts_own_name_is_none_of_ast():
    state = {f"conv.{name}": tensor for name, tensor in case("mn04").state.items()}
    assert find_weights(state, efficientat.MARKS, "x.pt", "EfficientAT").state.keys() == case("mn04").state.keys()


def test_pickle_bombs_of_every_format_are_called_by_their_name(antiphon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bombs = [pickle.dumps(Command(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for content in [
        *bombs,
        pickle.dumps({"state_dict": [1, Command()]}, 4),
        *(saved({"a": Command()}, zipped=zipped) for zipped in (True, False)),
    ]:
        Path("bomb.pt").write_bytes(content)
        message = mistake(antiphon("models", "import", "--family", "mn", "bomb.pt", "out"))
        assert "'bomb.pt': wants to run code when it is loaded (posix.system)" in message
    assert not Path("ran").exists()


def test_the_refusal_shows_how_to_convert_the_file(antiphon, tmp_path, monkeypatch):
    """The command is pasted into a shell as it is printed; the file's name does nothing there."""
    monkeypatch.chdir(tmp_path)
    name = "a;touch ran  'b\" $(touch ran).pth"
    torch.save({"state_dict": case("mn04").state, "config": Namespace(seed=1)}, name)
    message = mistake(antiphon("models", "import", "--family", "mn", name, "out"))
    command = message[message.index("python -c ") : message.index(' (["state_dict"], or the key')]
    Path("bin").mkdir()
    Path("bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    Path("bin/python").chmod(0o755)
    subprocess.run(
        ["sh", "-c", command], env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}, check=True
    )
    (safe,) = shlex.split(message[message.index(" then import ") + len(" then import ") :])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["bin", name, safe])
    done = antiphon("models", "import", "--family", "mn", safe, "out", "--name", "odd")
    assert done.code == 0, done.err


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED: dict[
    str, tuple[Callable[[dict[str, torch.Tensor]], Any], list[str]]
] = {  # -> file's content, what is left over
    "compiled": (lambda state: under("_orig_mod.", state), []),
    "ddp_compiled": (lambda state: under("module._orig_mod.", state), []),
    "lightning": (lambda state: {"state_dict": under("net.", state), "epoch": 3}, ["epoch"]),
    "unheard_of": (lambda state: {"weights": under("my_wrapper.inner.", state)}, []),
    "averaged": (lambda state: {"n_averaged": torch.tensor(5), **under("module.", state)}, ["n_averaged"]),
    "extra": (
        lambda state: {"state_dict": {**under("model.", state), "criterion.pos_weight": torch.ones(4)}},
        ["criterion.pos_weight"],
    ),
    "tutorial": (
        lambda state: {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}, "loss": 0.1},
        ["epoch", "optimizer_state_dict", "loss"],
    ),
    "both": (lambda state: {"model_ema": under("module.", state), "model": state}, ["model_ema"]),
    "average_alone": (lambda state: {"ema": {"decay": 0.99, "state_dict": state}}, ["decay"]),
    "both_in_one": (
        lambda state: {**under("net.", state), "net_ema.features.15.block.0.0.weight": torch.ones(1)},
        ["net_ema.features.15.block.0.0.weight"],
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_seen_through_and_what_is_left_over_is_named(kind):
    wrap, left_over = WRAPPED[kind]
    state = case("mn04").state
    found = find_weights(wrap(state), efficientat.MARKS, "x.pt", "EfficientAT")
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())
    assert list(found.left_over) == left_over


def test_what_is_left_over_is_printed(antiphon, tmp_path):
    state = {**under("model._orig_mod.", case("mn04").state), "criterion.pos_weight": torch.ones(4)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "mn04.ckpt")
    done = antiphon("models", "import", "--family", "mn", tmp_path / "mn04.ckpt", tmp_path / "out")
    assert done.code == 0, done.err
    assert "left out, 2: criterion.pos_weight, epoch\n" in done.out


def test_two_networks_in_one_file_are_not_chosen_between():
    state = case("mn04").state
    with pytest.raises(
        ValueError, match=r"holds several networks, under 'student\.', 'teacher\.'; save one of them alone"
    ):
        find_weights({**under("student.", state), **under("teacher.", state)}, efficientat.MARKS, "x.pt", "EfficientAT")


def test_an_encoder_of_transformers_without_its_head_is_recognised():
    names = ["embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight"]
    state = {f"audio_spectrogram_transformer.{name}": torch.ones(1) for name in names}
    with pytest.raises(
        ValueError,
        match=r"names are those of Hugging Face's transformers .*cls_token.*ASTForAudioClassification can be",
    ):
        find_weights(state, ast.MARKS, "model.safetensors", "YuanGongND/ast")


def test_ast_is_not_taken_for_a_wrapped_vit():
    state = {"v.patch_embed.proj.weight": torch.ones(2, 1, 16, 16), "v.pos_embed": torch.ones(1, 3, 2)}
    with pytest.raises(ValueError, match=r"no tensor is named conv_stem\.weight or patch_embed\.proj\.weight"):
        find_weights(state, timm.MARKS, "x.pt", "timm")


@pytest.mark.parametrize("file", ["theirs.pth", "theirs.safetensors"])
def test_an_init_that_is_no_tagger_yet_points_to_the_import(tmp_path, tiny, start, file):
    save_file(under("module.", case("mn04").state), tmp_path / file)
    run = start(tiny("demo"))
    recipe = tiny("demo", *imported_as("cnn", tmp_path / file))
    with pytest.raises(ValueError, match=r"become a tagger first \(antiphon models import FILE OUT\)"):
        build_initial_tagger(recipe, "cnn", tags=run.prepared.dataset.tags, files=LocalFiles())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--family", "mm"],
            "--family 'mm': no such family; known are mn, dymn, frame_mn, ced, passt, eat, ast, timm, wav2vec2",
        ),
        (["--family", "dymn"], "is a network of the family mn"),
        (
            ["--family", "ced"],
            "no tensor is named patch_embed.proj.weight or encoder.patch_embed.proj.weight, as in the networks of "
            "RicherMans/CED; found ",
        ),
        (["--family", "ced", "--strides", "2221"], "for mn and dymn only, not for ced"),
        (["--family", "mn", "--strides", "2231"], "must be four times 1 or 2"),
        (["--family", "mn", "--name", "Big One"], "--name 'Big One': a name is a small letter"),
        (["--family", "mn"], "these weights have 10 classes; name them with --tags FILE"),
        (["--family", "mn", "--tags", "nowhere.txt"], "--tags 'nowhere.txt': no such file"),
        (["--family", "mn", "--tags", "nine.txt"], "lists 9 tags, the weights have 10 classes"),
        (["--family", "mn", "--tags", "twice.txt"], "'bird' is listed twice"),
        (["--family", "mn", "--tags", "other.csv"], "a CSV file needs a column display_name"),
        (["--family", "mn", "--tags", "jumbled.csv"], "its column index must count the rows from 0"),
        (["--family", "mn", "--labels", "one"], "--labels 'one': must be single (one tag per clip) or multi"),
    ],
)
def test_mistakes_leave_nothing_behind(antiphon, ten_classes, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("nine.txt").write_text("\n".join(UNSORTED[:9]))
    Path("twice.txt").write_text("\n".join(["bird", *UNSORTED[:8], "bird"]))
    Path("other.csv").write_text("name\nbird\n")
    Path("jumbled.csv").write_text("index,display_name\n1,bird\n0,bell\n")
    assert message in mistake(antiphon("models", "import", *arguments, ten_classes, "out"))
    assert not Path("out").exists()


def test_an_out_that_exists_is_left_alone(antiphon, weights, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    message = mistake(antiphon("models", "import", "--family", "mn", weights, tmp_path / "mine"))
    assert "exists already; choose a new folder or URI" in message
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_damaged_files_and_files_of_other_kinds_are_refused(antiphon, weights, tmp_path):
    for name, data, message in [
        ("cut.pt", weights.read_bytes()[:100_000], "or a damaged one (RuntimeError: PytorchStreamReader"),
        ("empty.pth", b"", "not a file that torch.save wrote, or a damaged one (EOFError"),
        ("letter.bin", b"dear friend", "not a file that torch.save wrote"),
        ("pickle.pt", pickle.dumps([1.5], protocol=4), "or a damaged one (UnpicklingError: Unsupported operand"),
        ("cut-bomb.pt", saved(Command(), zipped=True)[:-30], "or a damaged one (RuntimeError: PytorchStreamReader"),
        ("letter.safetensors", b"dear friend", "not a safetensors file, or a damaged one"),
        ("mn04.npz", b"", "must end in .pt, .pth, .bin, .ckpt or .safetensors"),
    ]:
        (tmp_path / name).write_bytes(data)
        assert message in mistake(antiphon("models", "import", "--family", "mn", tmp_path / name, tmp_path / "out"))
    missing = antiphon("models", "import", "--family", "mn", tmp_path / "none.pt", tmp_path / "out")
    assert "none.pt': no such file" in mistake(missing)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": {"a": torch.ones(1)}},
            "no tensor is named features.15.block.0.0.weight or layers.14.exp_norm.weight",
        ),
        ({"state_dict": {"a": 1}}, "its 'a' is not a tensor"),
        ({"model": {}}, "no state dict"),
        ([torch.ones(1)], "found list without tensors"),
    ],
)
def test_contents_without_a_network_are_named(antiphon, tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pt")
    assert message in mistake(antiphon("models", "import", "--family", "mn", tmp_path / "odd.pt", tmp_path / "out"))


MARK = efficientat.MARKS[0]  # a tensor that the network must have


def holding_itself() -> dict:
    loop: dict = {}
    loop["state_dict"] = loop
    return loop


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (holding_itself(), "its 'state_dict' is not a tensor"),
        ({"model": {"state_dict": {MARK: torch.zeros(1).expand(10**6, 10**6)}}}, "4 are stored; use another file"),
        ({MARK: torch.eye(3).to_sparse()}, "is no plain tensor of numbers"),
    ],
)
def test_contents_without_end_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd.pt") as caught:
        import_weights(str(tmp_path / "odd.pt"), str(tmp_path / "out"), family="mn")
    assert message in str(caught.value)


def test_unknown_and_missing_tensors_are_named(antiphon, tmp_path):
    state = case("mn04").state
    state["features.0.0.wieght"] = state.pop("features.0.0.weight")
    torch.save(state, tmp_path / "odd.pt")
    message = mistake(antiphon("models", "import", "--family", "mn", tmp_path / "odd.pt", tmp_path / "out"))
    assert "odd.pt: these weights do not fit" in message
    assert "unknown: features.0.0.wieght; missing: features.0.0.weight" in message
    assert not (tmp_path / "out").exists()


def test_it_is_written_to_an_object_store_too(antiphon, weights, s3_server, monkeypatch, tmp_path):
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="taggers")
    done = antiphon("models", "import", "--family", "mn", weights, "s3://taggers/ours/mn04")
    assert done.code == 0, done.err
    soundfile.write(tmp_path / "tone.wav", waveform(1, 32_000)[0].numpy(), 32_000)
    tagged = antiphon("tag", "s3://taggers/ours/mn04", tmp_path / "tone.wav")
    assert tagged.code == 0, tagged.err
    again = antiphon("models", "import", "--family", "mn", weights, "s3://taggers/ours/mn04")
    assert "exists already" in mistake(again)


def test_an_imported_frame_mn_knows_when(tmp_path, antiphon):
    """PretrainedSED's file with 447 tags becomes a tagger with their logits in time, sorted by name; the rest is
    named."""
    torch.save(case("frame_mn06").state, tmp_path / "frame_mn06_strong_1.pt")
    tags = [f"tag {number}" for number in range(447)]
    (tmp_path / "tags.txt").write_text("\n".join(tags))
    without = antiphon("models", "import", tmp_path / "frame_mn06_strong_1.pt", tmp_path / "a", "--family", "frame_mn")
    assert without.code == 2
    options = ("--family", "frame_mn", "--tags", tmp_path / "tags.txt", "--json")
    done = antiphon("models", "import", tmp_path / "frame_mn06_strong_1.pt", tmp_path / "sed", *options)
    found = json.loads(done.out)
    assert found["dropped"] == ["weak_head.weight", "weak_head.bias"]
    assert found["model"]["front_end"]["kind"] == "pretrainedsed128"
    tagger, _ = load_tagger(tmp_path / "sed")
    with torch.no_grad():
        frames_BPC = tagger.outputs(tagger.front_end(waveform(10, 16_000))).frames_BPC
    expected_BCP = case("frame_mn06").logits_BC
    places = [tagger.tags.index(tag) for tag in tags[:5]]
    torch.testing.assert_close(frames_BPC[:, ::10, places].transpose(1, 2), expected_BCP, rtol=0, atol=2e-5)
