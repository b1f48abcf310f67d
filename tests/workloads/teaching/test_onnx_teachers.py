"""ONNX files as teachers: waveforms or log-mels in, logits out; what the recipe must say of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio

from workloads.config.recipe import Augment, FrontEnd
from workloads.config.teach import Teach, Teacher, TeachRecipe
from workloads.data.shard import Shard, ViewKey
from workloads.models.front_end import build_front_end
from workloads.runtime.opener import LocalFiles
from workloads.teaching.teachers import load_teachers

onnx = pytest.importorskip("onnx")
CPU = torch.device("cpu")


def write(path: Path, shape: list[Any], *, axis: int, outputs: tuple[str, ...] = ("logits",), facts: str = "") -> Path:
    """A file whose logits are the means over one axis of its input."""
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [axis])
    nodes = [helper.make_node("ReduceMean", ["clips", "axes"], [name], keepdims=0) for name in outputs]
    if len(shape) == 4:
        nodes = [
            helper.make_node("Squeeze", ["clips", "one"], ["three"]),
            helper.make_node("ReduceMean", ["three", "axes"], ["logits"], keepdims=0),
        ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("clips", number, shape)],
        [helper.make_tensor_value_info(name, number, None) for name in outputs],
        [axes, helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if facts:
        helper.set_model_props(model, {"antiphon.json": facts})
    onnx.save(model, path)
    return path


def tag_file(folder: Path, count: int) -> str:
    (folder / "tags.txt").write_text("".join(f"tag{number}\n" for number in range(count)))
    return str(folder / "tags.txt")


def load(path: Path, augment: Augment | None = None, teach: Teach | None = None, **settings: Any) -> Any:
    teacher = Teacher(uri=str(path), **settings)
    recipe = TeachRecipe(name="x", teachers={"file": teacher}, augment=augment or Augment(), teach=teach or Teach())
    (model,) = load_teachers(recipe, {"file": path}, LocalFiles())
    return model


def shard_of(x_BT: torch.Tensor, masks: tuple[float, ...] = (0, 0, 0, 0)) -> Shard:
    keys, nothing = tuple(ViewKey(str(row), 0, 0) for row in range(len(x_BT))), torch.empty(len(x_BT), 0)
    labels = {"y_BC": nothing, "known_BC": nothing, "unmixed_y_BC": nothing}
    return Shard(keys=keys, x_BT=x_BT, **labels, masks_B4=torch.tensor([masks] * len(x_BT)))


@pytest.mark.parametrize("shape", [["clips", 64, "frames"], ["clips", 1, 64, "frames"], [1, 64, "frames"]])
def test_a_file_hears_the_log_mel_masked_and_normalised(tmp_path, shape):
    path = write(tmp_path / "a.onnx", shape, axis=2)
    settings = {"labels": "multi", "tags": tag_file(tmp_path, 64)}
    model = load(path, input="logmel", front_end=FrontEnd(mean=-4.0, std=2.0, frames=60), **settings)
    assert (model.rate, model.labels, model.tags[63]) == (16_000, "multi", "tag63")
    assert model.about["front_end"] == "logmel64"
    model.set_input(rate=32_000, clip_seconds=0.5, device=CPU)
    shard = shard_of(0.1 * torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0)), (0.0, 0.5, 0.5, 0.5))
    mel_BMF = shard.mel(build_front_end("logmel64", clip_rate=32_000))
    padded_BMF = torch.nn.functional.pad(mel_BMF, (0, 10), value=-5.0)
    assert model.hear(shard).logits_BC.numpy() == pytest.approx(((padded_BMF + 4) / 2).mean(dim=2).numpy(), abs=1e-5)


def test_a_file_hears_waveforms_at_its_rate(tmp_path):
    path = write(tmp_path / "a.onnx", ["clips", 1, "samples"], axis=1)
    settings: dict[str, Any] = {"input": "waveform", "labels": "single", "tags": tag_file(tmp_path, 4_000)}
    model = load(path, rate=8_000, **settings)
    model.set_input(rate=16_000, clip_seconds=0.5, device=CPU)
    x_BT = torch.randn(2, 8_000, generator=torch.Generator().manual_seed(0))
    expected_BT = torchaudio.functional.resample(x_BT, 16_000, 8_000)
    assert np.allclose(model.hear(shard_of(x_BT)).logits_BC, expected_BT, atol=1e-6)
    with pytest.raises(ValueError, match=r"teachers\.file\.tags: 4000 tags, and the file gives 3500 logits"):
        model.hear(shard_of(x_BT[:, :7_000]))
    with pytest.raises(ValueError, match=r"mask log-mels, and teachers\.file takes waveforms; set both to 0"):
        load(path, Augment(mask_time=0.1), rate=8_000, **settings)


def test_a_file_of_export_says_itself_what_it_takes(tmp_path):
    facts = (
        '{"tags": ["a", "b"], "labels": "single", "rate": 32000, "input": {"kind": "log-mel", "front_end": "ced64"}}'
    )
    model = load(write(tmp_path / "a.onnx", ["clips", 64, "frames"], axis=2, facts=facts))
    assert (model.tags, model.labels, model.rate, model.about["front_end"]) == (("a", "b"), "single", 32_000, "ced64")


@pytest.mark.parametrize("logits", [True, False])
def test_a_file_gives_the_embedding_that_is_named_with_logits_or_without_tags(tmp_path, logits):
    outputs = ("logits", "vector") if logits else ("vector",)
    path = write(tmp_path / "a.onnx", ["clips", 1, "samples"], axis=1, outputs=outputs)
    own: dict[str, Any] = {"input": "waveform", "rate": 16_000, "embedding": "vector"}
    own |= {"labels": "multi", "tags": tag_file(tmp_path, 800)} if logits else {}
    model = load(path, teach=Teach(embedding=True, logits=logits), **own)
    model.set_input(rate=16_000, clip_seconds=0.05, device=CPU)
    x_BT = torch.randn(3, 800, generator=torch.Generator().manual_seed(0))
    heard = model.hear(shard_of(x_BT))
    assert torch.equal(heard.embedding_BD, x_BT)
    assert (heard.logits_BC is not None, len(model.tags)) == ((True, 800) if logits else (False, 0))


@pytest.mark.parametrize(
    ("teach", "own", "message"),
    [
        ({"embedding": True}, {}, r"teach\.embedding = True: teachers\.file\.embedding is missing: name the output"),
        ({}, {"embedding": "vector"}, r"teachers\.file\.embedding = 'vector': no embedding is stored; set teach\.emb"),
        ({"frames": True}, {}, r"teach\.frames = True: teachers\.file is an ONNX file, which has no logits in time"),
        ({"logits": False}, {}, r"logits = False: false stores embeddings only: needs embedding = true"),
        ({"logits": False, "embedding": True, "k": 3}, {}, r"k = 3: is for logits = true; leave it out"),
        (
            {"logits": False, "embedding": True},
            {"embedding": "vector", "labels": "multi"},
            r"teachers\.file\.labels: is of logits, and teach\.logits = False stores none",
        ),
        ({"embedding": True}, {"embedding": "x", "output": "first"}, r"embedding = 'x': must be .*: first, second"),
    ],
)
def test_embeddings_that_cannot_be_stored_are_refused(tmp_path, teach, own, message):
    path = write(tmp_path / "a.onnx", ["clips", 64, "frames"], axis=2, outputs=("first", "second"))
    with pytest.raises(ValueError, match=message):
        load(path, teach=Teach(**teach), **own)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"teachers\.file\.tags: is missing, and the file does not say it; give a text file with a tag a line"),
        ({"tags": 2}, r"teachers\.file\.labels: is missing.*give single or multi"),
        ({"tags": 2, "labels": "multi"}, r"teachers\.file\.input: is missing.*give waveform or logmel"),
        ({"tags": 2, "labels": "multi", "input": "logmel"}, r"teachers\.file\.front_end: is missing.*one of logmel64"),
        ({"tags": 2, "labels": "multi", "input": "waveform"}, r"teachers\.file\.rate: is missing.*in Hz"),
        ({"output": "x"}, r"teachers\.file\.output = 'x': must be the one of .* logits: first, second"),
        ({"output": ""}, r"teachers\.file\.output = '': must be the one of .* logits: first, second"),
    ],
)
def test_what_a_file_does_not_say_is_asked_for(tmp_path, settings, message):
    outputs = ("first", "second") if "output" in settings else ("logits",)
    path = write(tmp_path / "a.onnx", ["clips", 64, "frames"], axis=2, outputs=outputs)
    given = settings | ({"tags": tag_file(tmp_path, settings["tags"])} if "tags" in settings else {})
    with pytest.raises(ValueError, match=message):
        load(path, **given)


def test_files_that_cannot_be_run_are_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no ONNX")
    with pytest.raises(ValueError, match=r"teachers\.file\.uri: no ONNX file that can be run"):
        load(tmp_path / "a.onnx")
    settings: dict[str, Any] = {"labels": "multi", "tags": tag_file(tmp_path, 64), "input": "logmel"}
    wrong = load(write(tmp_path / "b.onnx", ["clips", 128, 10], axis=2), front_end=FrontEnd(), **settings)
    wrong.set_input(rate=16_000, clip_seconds=0.5, device=CPU)
    with pytest.raises(ValueError, match=r"takes \(clips, 128, 10\), not clips of shape \(2, 64, 50\); check input"):
        wrong.hear(shard_of(torch.zeros(2, 8_000)))
    three = load(write(tmp_path / "c.onnx", [3, 64, "frames"], axis=2), front_end=FrontEnd(), **settings)
    three.set_input(rate=16_000, clip_seconds=0.5, device=CPU)
    with pytest.raises(ValueError, match="takes 3 clips at once; export it for any number, or one"):
        three.hear(shard_of(torch.zeros(2, 8_000)))
