"""Weights under EfficientAT's names give the logits that EfficientAT's own code gave, from the waveform on."""

import pytest
import torch

from tests.efficientat import case
from tests.official import waveform
from workloads.config.architectures import MN, DyMN
from workloads.config.recipe import FrontEnd
from workloads.models.official.converted import Converted
from workloads.models.official.efficientat import check_file_name, convert
from workloads.models.tagger import Tagger, build_tagger

RATE = 32_000
CLOSE = 2e-5  # MN differs by 1e-6, DyMN by 7e-6
ARCHS = {
    "mn10": MN(family="mn"),
    "mn04": MN(family="mn", width=0.4),
    "mn10_fc": MN(family="mn", head="fully_convolutional"),
    "mn10_attention": MN(family="mn", head="attention"),
    "mn04_fc_s2221": MN(family="mn", width=0.4, head="fully_convolutional", strides=(2, 2, 2, 1)),
    "mn04_se_ct": MN(family="mn", width=0.4, se_axes=("c", "t")),
    "mn04_se_none": MN(family="mn", width=0.4, se_axes=()),
    # its own code cannot run gates over bands: recorded with one line of it repaired (the file's "what")
    "mn04_se_cf": MN(family="mn", width=0.4, se_axes=("c", "f")),
    "dymn10": DyMN(family="dymn", temperature=1.0),
    "dymn04": DyMN(family="dymn", width=0.4, temperature=1.0),
}


def tagger_of(converted: Converted) -> Tagger:
    tagger = build_tagger(
        converted.model,
        name="official",
        tags=tuple(str(number) for number in range(converted.num_classes)),
        labels="multi",
        clip_seconds=converted.clip_seconds,
        clip_rate=RATE,
        seed=0,
    )
    tagger.load_initial(converted.weights)
    assert tagger.newly_initialised == ()
    return tagger.eval()


@pytest.mark.parametrize("name", ARCHS)
def test_logits_are_those_of_the_official_code(name):
    state, expected_BC = case(name)
    converted = convert(state, strides=ARCHS[name].strides)
    assert converted.model.arch == ARCHS[name]
    assert converted.model.front_end == FrontEnd(kind="efficientat128")
    assert (converted.num_classes, converted.clip_seconds) == (527, 10.0)
    with torch.no_grad():
        logits_BC = tagger_of(converted).tag(waveform(10, RATE))
    torch.testing.assert_close(logits_BC[:, :20], expected_BC, rtol=0, atol=CLOSE)
    # the two clips differ by far more, so the comparison is not of biases alone
    assert (expected_BC[0] - expected_BC[1]).std() > 0.01


def test_only_constants_are_dropped():
    assert convert(case("mn04").state).dropped == ()
    dropped = convert(case("dymn04").state).dropped
    assert len(dropped) == 2 * 15
    assert {name.rsplit(".", 1)[1] for name in dropped} == {"lambdas", "init_v"}


def test_kernels_are_mixed_at_the_temperature_of_training():
    tagger = tagger_of(convert(case("dymn04").state))
    assert tagger.backbone.temperature == 1
    with torch.no_grad():
        at_one_BC = tagger.tag(waveform(10, RATE))
        tagger.backbone.temperature.fill_(30)
        assert (tagger.tag(waveform(10, RATE)) - at_one_BC).abs().max() > 0.01


def test_weights_of_images_keep_the_initial_temperature():
    """1000 classes are ImageNet's; training from them starts at a temperature of 30."""
    head = {"classifier.5.weight": [1000, 512], "classifier.5.bias": [1000]}
    converted = convert(case("dymn04", **head).state)
    assert converted.model.arch == DyMN(family="dymn", width=0.4)  # the default initial temperature
    assert tagger_of(converted).backbone.temperature == 30


@pytest.mark.parametrize("name", ["mn04", "dymn04"])
def test_strides_are_the_given_ones(name):
    converted = convert(case(name).state, strides=(2, 2, 2, 1))
    assert converted.model.arch.strides == (2, 2, 2, 1)
    mel_BMF = torch.zeros(1, 128, 64)
    with torch.no_grad():
        assert tagger_of(converted).outputs(mel_BMF).sequence_BPD.shape[1] == 4  # 2 with the last stride of 2


def test_a_gate_with_no_length_of_the_last_map_is_refused():
    state = case("mn04_se_cf").state
    with pytest.raises(ValueError, match=r"a gate over 4 values; clips of 10 s have .*f 8.* there\. Check --strides"):
        convert(state, strides=(2, 2, 2, 1))


def without(name):
    return lambda state: state.pop(name)


def with_shape(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("mn04", without("features.3.block.1.1.running_var"), r"missing: features\.3\.block\.1\.1\.running_var"),
        ("mn04", without("classifier.2.bias"), r"missing: classifier\.0\.bias"),
        ("mn04", without("classifier.5.weight"), "no head: one of classifier.5.weight"),
        (
            "mn04",
            without("features.15.block.0.0.weight"),
            "neither features.15.block.0.0.weight nor layers.14.exp_norm",
        ),
        ("mn04", with_shape("features.9.extra", 3), r"unknown: features\.9\.extra"),
        (
            "mn04",
            with_shape("features.4.block.2.conc_se_layers.0.fc1.weight", 8, 33),
            r"fc1\.weight is \(8, 33, 1, 1\)",
        ),
        ("mn04", with_shape("features.4.block.2.conc_se_layers.1.fc1.weight", 8, 8), r"unknown: .*conc_se_layers\.1"),
        ("mn04", with_shape("features.16.0.weight", 384, 72, 1, 1), r"wrong shape: features\.16\.0\.weight"),
        ("mn04", with_shape("features.15.block.0.0.weight"), "is a single number"),
        ("mn04", with_shape("classifier.0.weight", 512, 384), "two tensors are named for the same part"),
        ("mn10_attention", with_shape("classifier.head_weight", 1, 8, 1), r"classifier\.mix is \(8,\), must be \(4,\)"),
        ("dymn04", without("layers.7.proj_conv.weight"), r"missing: blocks\.7\.project\.weight"),
        (
            "dymn04",
            with_shape("layers.0.depth_conv.weight", 1, 1, 6, 48),
            r"blocks\.0\.depthwise\.weight is \(1, 1, 6, 48\)",
        ),
        ("dymn04", with_shape("layers.0.depth_act.lambdas", 4), r"layers\.0\.depth_act\.lambdas is \[0\.0, 0\.0"),
        ("dymn04", with_shape("layers.0.block.0.0.weight", 8, 1, 3, 3), "replace_se"),
        ("dymn04", without("classifier.5.weight"), "usual two-layer head only"),
    ],
)
def test_misfits_are_named(name, damage, message):
    state = case(name).state
    damage(state)
    with pytest.raises(ValueError, match=message):
        convert(state)


@pytest.mark.parametrize(
    ("file_name", "strides", "message"),
    [
        ("mn10_as_fc_s2221_mAP_466.pt", (2, 2, 2, 2), "add --strides 2221"),
        ("mn10_as_hop_15_mAP_463.pt", (2, 2, 2, 2), "another spectrogram"),
        ("mn10_as_mels_40_mAP_453.pt", (2, 2, 2, 2), "another spectrogram"),
    ],
)
def test_settings_that_only_the_name_shows_must_be_given(file_name, strides, message):
    with pytest.raises(ValueError, match=message):
        check_file_name(file_name, strides)


def test_names_that_agree_with_the_given_strides_pass():
    for file_name, strides in (("mn10_as_fc_s2211_mAP_466.pt", (2, 2, 1, 1)), ("dymn20_as_mAP_493.pt", (2, 2, 2, 2))):
        assert check_file_name(file_name, strides) is None
