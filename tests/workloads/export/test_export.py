"""Taggers exported as files: the file's logits against the tagger's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from tests.hearing import TRANSFORMERS, hearing
from tests.official import waveform
from workloads.config.architectures import (
    AST,
    CED,
    EAT,
    MN,
    Arch,
    DyMN,
    EfficientNet,
    FrameMN,
    OnDevice,
    PaSST,
    Timm,
    ViT,
)
from workloads.config.recipe import FrontEnd, Model
from workloads.evaluate.sounds import hear_sound
from workloads.export.export import (
    METADATA_KEY,
    WAVEFORMS,
    ExportMismatch,
    check,
    example_input,
    export,
    max_length,
    open_file,
    takes_any_length,
)
from workloads.export.quantise import quantise
from workloads.models.tagger import Tagger, build_tagger

CASES: dict[str, tuple[Arch, str]] = {
    "mn": (MN(family="mn", width=0.1), "efficientat128"),
    "mn_attention": (MN(family="mn", width=0.1, head="attention", se_axes=("c", "f")), "efficientat128"),
    "frame_mn": (FrameMN(family="frame_mn", width=0.1), "efficientat128"),
    "vit": (ViT(family="vit", dim=32, depth=2, heads=2, pool="avg"), "logmel64"),
    "ced": (CED(family="ced", size="tiny"), "ced64"),
    "ast": (AST(family="ast", size="tiny", stride=16), "kaldi128"),
    "efficientnet": (EfficientNet(family="efficientnet"), "kaldi128"),
    "timm": (Timm(family="timm", name="resnet10t"), "logmel64"),
    "passt": (PaSST(family="passt", depth=1), "efficientat128"),
    "eat": (EAT(family="eat", depth=1), "kaldi128"),
    "tc_resnet": (OnDevice(family="ondevice", variant="tc_resnet"), "logmel40"),
    "dymn": (DyMN(family="dymn", width=0.1, temperature=1.0), "efficientat128"),
    "lstm_p": (OnDevice(family="ondevice", variant="lstm_p"), "logmel40"),
    "crnn": (OnDevice(family="ondevice", variant="crnn"), "logmel40"),
    "att_rnn": (OnDevice(family="ondevice", variant="att_rnn"), "logmel40"),
    "mhatt_rnn": (OnDevice(family="ondevice", variant="mhatt_rnn"), "logmel40"),
}
FP32 = 5e-5  # of the largest logit: what rounding moves in networks that were taught, to 1.6e-5 in torch itself
RECURRENT = ("lstm_p", "crnn", "att_rnn", "mhatt_rnn")


def tagger_of(name: str) -> Tagger:
    """A tagger of one-second clips, whose logits of different sounds differ."""
    return hearing(initial(name))


def initial(name: str) -> Tagger:
    arch, kind = CASES[name]
    return built(Model(arch=arch, front_end=FrontEnd(kind=kind)))


def built(model: Model, *, seconds: float = 1.0, rate: int | None = None) -> Tagger:
    return build_tagger(
        model,
        name="tagger",
        tags=("a", "b", "c"),
        labels="multi",
        clip_seconds=seconds,
        clip_rate=rate or model.front_end.rate,
        seed=0,
    )


def rounding(tagger: Tagger, largest_logit: float) -> float:
    """How far a file's logits may be from the tagger's: keyed weights, which Transformers have, give small ones."""
    return 1e-5 if isinstance(tagger.model.arch, TRANSFORMERS) else FP32 * max(1.0, largest_logit)


def largest_logit(tagger: Tagger) -> float:
    """Of the waveforms at which a file is checked."""
    with torch.no_grad():
        clips = (
            example_input(tagger, num_clips=number, ratio=ratio, front_end_inside=True) for ratio, number in WAVEFORMS
        )
        return max(hear_sound(tagger, x_T, "windows").logits_C.abs().max().item() for x_BT in clips for x_T in x_BT)


def waveform_and_logits(tagger: Tagger, seconds: float) -> tuple[Tensor, Tensor]:
    """Two clips, and the tagger's logits of them."""
    x_BT = waveform(seconds, tagger.clip_rate)
    with torch.no_grad():
        return x_BT, tagger.tag(x_BT)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        *((name, "onnx") for name in ("mn", "vit", "ced", "ast", "tc_resnet")),
        *((name, "pt2") for name in ("vit", "passt", "eat")),
        *(
            pytest.param(name, "onnx", marks=pytest.mark.slow)
            for name in ("mn_attention", "frame_mn", "efficientnet", "dymn", "timm", "passt", "eat", *RECURRENT)
        ),
        *(pytest.param(name, "pt2", marks=pytest.mark.slow) for name in ("mn", "ced", "ast", "dymn", *RECURRENT)),
    ],
)
def test_a_file_gives_the_taggers_logits(name, to, tmp_path):
    tagger, path = tagger_of(name), tmp_path / f"tagger.{to}"
    assert export(tagger, path, to=to, front_end_inside=True) < rounding(tagger, largest_logit(tagger))
    compare_whole_sounds(tagger, open_file(path, to), "windows")


def compare_whole_sounds(tagger, forward, long_clips):
    """A file with the front end inside hears waveforms of any length as `antiphon tag` does, alone and in a batch."""
    for seconds in (0.3, 1.0, 5.0, 17.3):
        x_BT = waveform(seconds, tagger.clip_rate)
        expected_BC = torch.stack([hear_sound(tagger, x_T, long_clips).logits_C for x_T in x_BT])
        assert (expected_BC[0] - expected_BC[1]).abs().max() > 0.01
        close = {"rtol": 0.0, "atol": rounding(tagger, expected_BC.abs().max().item())}
        torch.testing.assert_close(torch.from_numpy(forward(x_BT.numpy())), expected_BC, **close)
        torch.testing.assert_close(torch.from_numpy(forward(x_BT[1:].numpy())), expected_BC[1:], **close)


@pytest.mark.parametrize(("labels", "long_clips"), [("single", "windows"), ("multi", "start")])
def test_probabilities_are_joined_by_the_taggers_labels_and_rule(labels, long_clips, tmp_path):
    tagger, path = tagger_of("vit"), tmp_path / "tagger.onnx"
    tagger.labels = labels
    export(tagger, path, to="onnx", front_end_inside=True, long_clips=long_clips)
    compare_whole_sounds(tagger, open_file(path, "onnx"), long_clips)


@pytest.mark.parametrize("frame_pool", ["none", "linear"])
def test_a_file_of_a_tagger_that_is_certain_says_so_of_long_sounds(frame_pool, tmp_path):
    """Its logits are far from 0, where a runtime's sigmoid rounds to 0 or 1."""
    arch, path = ViT(family="vit", dim=32, depth=1, heads=2, frame_pool=frame_pool), tmp_path / "tagger.onnx"
    tagger = hearing(built(Model(arch=arch, front_end=FrontEnd(kind="kaldi128"))))
    with torch.no_grad():
        dict(tagger.named_parameters())["backbone.head.bias"].copy_(torch.tensor([60.0, -60.0, -20.0]))
    export(tagger, path, to="onnx", front_end_inside=True)
    x_BT = waveform(5.0, tagger.clip_rate)
    expected_BC = torch.stack([hear_sound(tagger, x_T, "windows").logits_C for x_T in x_BT])
    found_BC = torch.from_numpy(open_file(path, "onnx")(x_BT.numpy()))
    torch.testing.assert_close(found_BC, expected_BC, rtol=1e-5, atol=0)
    assert (expected_BC.abs().amin(0) > 15).all()


@pytest.mark.parametrize("name", ["vit", "ced", *(pytest.param(name, marks=pytest.mark.slow) for name in RECURRENT)])
def test_the_front_end_may_stay_outside(name, tmp_path):
    tagger, path = tagger_of(name), tmp_path / "tagger.onnx"
    export(tagger, path, to="onnx", front_end_inside=False)
    x_BT, expected_BC = waveform_and_logits(tagger, 1.0)
    logits_BC = open_file(path, "onnx")(tagger.front_end(x_BT).numpy())
    torch.testing.assert_close(torch.from_numpy(logits_BC), expected_BC, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_metadata_is_stored_in_the_file(to, tmp_path):
    path, metadata = tmp_path / f"tagger.{to}", {"tags": ["a", "b", "c"], "rate": 16_000}
    export(tagger_of("vit"), path, to=to, front_end_inside=False, metadata=metadata)
    if to == "onnx":
        (stored,) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == METADATA_KEY)
    else:
        extra = {METADATA_KEY: ""}
        torch.export.load(path, extra_files=extra)
        stored = extra[METADATA_KEY]
    assert json.loads(stored) == metadata


def test_a_file_with_one_wrong_weight_fails_the_check(tmp_path):
    tagger, path = tagger_of("vit"), tmp_path / "tagger.onnx"
    assert export(tagger, path, to="onnx", front_end_inside=True) == check(
        tagger, path, to="onnx", front_end_inside=True
    )
    written = onnx.load(path)
    weights = [tensor for tensor in written.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    weight = max(weights, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(weight.raw_data, dtype=np.float32).copy()
    values[0] += 1
    weight.raw_data = values.tobytes()
    onnx.save(written, path)
    with pytest.raises(ExportMismatch, match=r"tagger\.onnx: its logits for 1 clips of 1 x the length differ by"):
        check(tagger, path, to="onnx", front_end_inside=True)


def test_a_file_of_other_weights_fails_the_check(tmp_path):
    tagger, path = tagger_of("vit"), tmp_path / "tagger.pt2"
    export(tagger, path, to="pt2", front_end_inside=False)
    tagger.mean += 0.01
    with pytest.raises(ExportMismatch, match="do not use this file"):
        check(tagger, path, to="pt2", front_end_inside=False)


def test_which_networks_take_other_lengths():
    any_length = {name for name in CASES if takes_any_length(initial(name))}
    assert any_length == set(CASES) - {"vit", "ast", "passt", "eat", "timm", *RECURRENT}
    gated = Model(arch=MN(family="mn", width=0.1, se_axes=("c", "t")))
    padded = Model(arch=CED(family="ced"), front_end=FrontEnd(kind="ced64", frames=1012))
    assert not takes_any_length(built(gated))
    assert not takes_any_length(built(padded))
    ced = Model(arch=CED(family="ced"), front_end=FrontEnd(kind="ced64"))
    assert takes_any_length(built(ced, seconds=10.11))
    assert not takes_any_length(built(ced, seconds=10.12)), "1013 frames: a second window"


def test_only_ced_has_a_maximum_length():
    assert {max_length(initial(name), front_end_inside=True) for name in set(CASES) - {"ced"}} == {None}
    ced = Model(arch=CED(family="ced"), front_end=FrontEnd(kind="ced64"))
    for rate, samples in ((16_000, 161_919), (32_000, 323_838)):  # one sample more makes 1013 frames
        tagger = built(ced, rate=rate)
        assert max_length(tagger, front_end_inside=False) == 1012
        assert max_length(tagger, front_end_inside=True) == samples
        frames = [tagger.front_end(torch.zeros(1, samples + more)).shape[2] for more in (0, 1)]
        assert frames == [1012, 1013]
    assert max_length(built(ced, seconds=12.0), front_end_inside=True) is None, "its file accepts clips of 12 s only"


@pytest.mark.parametrize("to", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)])
def test_ceds_file_accepts_log_mels_up_to_one_window(to, tmp_path):
    tagger, path = tagger_of("ced"), tmp_path / f"tagger.{to}"
    export(tagger, path, to=to, front_end_inside=False)
    x_BT = waveform(10.12, 16_000)[:, :161_919]
    with torch.no_grad():
        mel_BMF, expected_BC = tagger.front_end(x_BT), tagger.tag(x_BT)
    assert mel_BMF.shape[-1] == max_length(tagger, front_end_inside=False)
    logits_BC = torch.from_numpy(open_file(path, to)(mel_BMF.numpy()))
    torch.testing.assert_close(logits_BC, expected_BC, rtol=1e-4, atol=1e-5)


def test_log_mels_of_a_ced_of_several_windows_have_its_own_length(tmp_path):
    model = Model(arch=CED(family="ced"), front_end=FrontEnd(kind="ced64"))
    tagger, path = hearing(built(model, seconds=12.0)), tmp_path / "tagger.onnx"
    assert export(tagger, path, to="onnx", front_end_inside=False) < 1e-5
    x_BT, expected_BC = waveform_and_logits(tagger, 12.0)
    mel_BMF = tagger.front_end(x_BT).numpy()
    torch.testing.assert_close(torch.from_numpy(open_file(path, "onnx")(mel_BMF)), expected_BC, rtol=1e-4, atol=1e-5)
    (entry,) = onnx.load(path).graph.input
    assert [side.dim_value for side in entry.type.tensor_type.shape.dim] == [0, 64, 1201]  # any number of clips


def test_export_prints_nothing(tmp_path):
    """In a new process, so that torch's warnings cannot have been given before."""
    program = (
        "from pathlib import Path; import sys; sys.path.insert(0, '.');"
        "from tests.workloads.export.test_export import tagger_of; from workloads.export.export import export;"
        "[export(tagger_of('vit'), Path(sys.argv[1]) / f't.{to}', to=to, front_end_inside=True)"
        " for to in ('onnx', 'pt2')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["mn", "vit"])
def test_int8_gives_nearly_the_same_logits_from_a_smaller_file(name, tmp_path):
    tagger, path, small = tagger_of(name), tmp_path / "tagger.onnx", tmp_path / "small.onnx"
    export(tagger, path, to="onnx", front_end_inside=False, metadata={"rate": 1})
    mel_BMF = tagger.front_end(waveform_and_logits(tagger, 1.0)[0]).numpy()
    operators = quantise(path, small, [mel_BMF])
    assert operators.int8 > 0
    assert operators.fp32 == 0
    assert small.stat().st_size < 0.6 * path.stat().st_size
    assert [entry.key for entry in onnx.load(small).metadata_props] == [METADATA_KEY]
    expected_BC, logits_BC = open_file(path, "onnx")(mel_BMF), open_file(small, "onnx")(mel_BMF)
    difference = np.abs(logits_BC - expected_BC).max() / np.abs(expected_BC).max()
    assert 0 < difference < 0.2
