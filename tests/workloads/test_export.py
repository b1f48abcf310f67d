"""Taggers written as files that run without us: what the file says against what the tagger says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from tests.official import keyed_state, waveform
from workloads.architectures import AST, CED, MN, Arch, DyMN, EfficientNet, OnDevice, ViT
from workloads.config import FrontEnd, Model
from workloads.export import FACTS, ExportMismatch, check, export, open_file, takes_any_length
from workloads.quantise import quantise
from workloads.tagger import Tagger, build_tagger

CASES: dict[str, tuple[Arch, str]] = {
    "mn": (MN(family="mn", width=0.1), "efficientat128"),
    "mn_attention": (MN(family="mn", width=0.1, head="attention", se_axes=("c", "f")), "efficientat128"),
    "vit": (ViT(family="vit", dim=32, depth=2, heads=2, pool="avg"), "logmel64"),
    "ced": (CED(family="ced", size="tiny"), "ced64"),
    "ast": (AST(family="ast", size="tiny", stride=16), "kaldi128"),
    "efficientnet": (EfficientNet(family="efficientnet"), "kaldi128"),
    "tc_resnet": (OnDevice(family="ondevice", variant="tc_resnet"), "logmel40"),
    "dymn": (DyMN(family="dymn", width=0.1, temperature=1.0), "efficientat128"),
    "lstm_p": (OnDevice(family="ondevice", variant="lstm_p"), "logmel40"),
    "crnn": (OnDevice(family="ondevice", variant="crnn"), "logmel40"),
    "att_rnn": (OnDevice(family="ondevice", variant="att_rnn"), "logmel40"),
    "mhatt_rnn": (OnDevice(family="ondevice", variant="mhatt_rnn"), "logmel40"),
}


def tagger_of(name: str) -> Tagger:
    """A tagger of clips of a second, with weights as large as trained ones: fresh ones say almost nothing."""
    arch, kind = CASES[name]
    model = Model(arch=arch, front_end=FrontEnd(kind=kind))
    rate = model.front_end.rate
    tagger = build_tagger(
        model, name=name, tags=("a", "b", "c"), labels="multi", clip_seconds=1, clip_rate=rate, seed=0
    )
    tagger.load_state_dict(
        keyed_state({name: list(tensor.shape) for name, tensor in tagger.state_dict().items()})
        | {name: tensor for name, tensor in tagger.state_dict().items() if name == "backbone.temperature"}
    )
    return tagger.eval()


def says(tagger: Tagger, seconds: float) -> tuple[Tensor, Tensor]:
    """Two clips of sound, and the tagger's logits of them."""
    x_BT = waveform(seconds, tagger.clip_rate)
    with torch.no_grad():
        return x_BT, tagger.tag(x_BT)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        *((name, "onnx") for name in ("mn", "vit", "ced", "ast", "tc_resnet")),
        ("vit", "pt2"),
        *(
            pytest.param(name, "onnx", marks=pytest.mark.slow)
            for name in ("mn_attention", "efficientnet", "dymn", "lstm_p", "crnn", "att_rnn", "mhatt_rnn")
        ),
        *(pytest.param(name, "pt2", marks=pytest.mark.slow) for name in ("mn", "ced", "ast", "crnn", "dymn")),
    ],
)
def test_a_file_says_what_the_tagger_says(name, to, tmp_path):
    tagger, path = tagger_of(name), tmp_path / f"tagger.{to}"
    assert export(tagger, path, to=to, front_end_inside=True) < 1e-5
    runs = open_file(path, to)
    for seconds in (1.0, 0.7, 1.3) if takes_any_length(tagger) else (1.0,):
        x_BT, expected_BC = says(tagger, seconds)
        assert expected_BC.abs().max() > 0.01
        torch.testing.assert_close(torch.from_numpy(runs(x_BT.numpy())), expected_BC, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(runs(x_BT[1:].numpy())), expected_BC[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "ced"])
def test_the_front_end_may_stay_outside(name, tmp_path):
    tagger, path = tagger_of(name), tmp_path / "tagger.onnx"
    export(tagger, path, to="onnx", front_end_inside=False)
    x_BT, expected_BC = says(tagger, 1.0)
    logits_BC = open_file(path, "onnx")(tagger.front_end(x_BT).numpy())
    torch.testing.assert_close(torch.from_numpy(logits_BC), expected_BC, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_facts_travel_inside_the_file(to, tmp_path):
    path, facts = tmp_path / f"tagger.{to}", {"tags": ["a", "b", "c"], "rate": 16_000}
    export(tagger_of("vit"), path, to=to, front_end_inside=False, facts=facts)
    if to == "onnx":
        (found,) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == FACTS)
    else:
        extra = {FACTS: ""}
        torch.export.load(path, extra_files=extra)
        found = extra[FACTS]
    assert json.loads(found) == facts


def test_a_file_with_one_wrong_weight_is_found_out(tmp_path):
    tagger, path = tagger_of("vit"), tmp_path / "tagger.onnx"
    assert export(tagger, path, to="onnx", front_end_inside=True) == check(
        tagger, path, to="onnx", front_end_inside=True
    )
    written = onnx.load(path)
    weight = max(written.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(weight.raw_data, dtype=np.float32).copy()
    values[0] += 1
    weight.raw_data = values.tobytes()
    onnx.save(written, path)
    with pytest.raises(ExportMismatch, match=r"tagger\.onnx: its logits for 1 clips of 1 x the length differ by"):
        check(tagger, path, to="onnx", front_end_inside=True)


def test_a_file_of_other_weights_is_found_out(tmp_path):
    tagger, path = tagger_of("vit"), tmp_path / "tagger.pt2"
    export(tagger, path, to="pt2", front_end_inside=False)
    tagger.mean += 0.01
    with pytest.raises(ExportMismatch, match="not to be used"):
        check(tagger, path, to="pt2", front_end_inside=False)


def test_which_networks_take_other_lengths():
    free = {name for name in CASES if takes_any_length(tagger_of(name))}
    assert free == set(CASES) - {"vit", "ast", "lstm_p"}
    gated = Model(arch=MN(family="mn", se_axes=("c", "t")))
    filled_up = Model(arch=CED(family="ced"), front_end=FrontEnd(frames=1012))
    assert not takes_any_length(gated)
    assert not takes_any_length(filled_up)


def test_writing_says_nothing(tmp_path):
    """In a process of its own, so that torch's warnings cannot have been given before."""
    program = (
        "from pathlib import Path; import sys; sys.path.insert(0, '.');"
        "from tests.workloads.test_export import tagger_of; from workloads.export import export;"
        "[export(tagger_of('vit'), Path(sys.argv[1]) / f't.{to}', to=to, front_end_inside=True)"
        " for to in ('onnx', 'pt2')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["mn", "vit"])
def test_eight_bits_say_nearly_the_same_in_a_smaller_file(name, tmp_path):
    tagger, path, small = tagger_of(name), tmp_path / "tagger.onnx", tmp_path / "small.onnx"
    export(tagger, path, to="onnx", front_end_inside=False, facts={"rate": 1})
    mel_BMF = tagger.front_end(says(tagger, 1.0)[0]).numpy()
    share = quantise(path, small, [mel_BMF])
    assert share.int8 > 0
    assert share.fp32 == 0
    assert small.stat().st_size < 0.6 * path.stat().st_size
    assert [entry.key for entry in onnx.load(small).metadata_props] == [FACTS]
    expected_BC, logits_BC = open_file(path, "onnx")(mel_BMF), open_file(small, "onnx")(mel_BMF)
    difference = np.abs(logits_BC - expected_BC).max() / np.abs(expected_BC).max()
    assert 0 < difference < 0.2
