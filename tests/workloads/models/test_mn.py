"""MN against the tables of EfficientAT (sizes, widths, maps), and which initial weights it accepts."""

import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from tests.gradients import parameters_without_gradient
from workloads.config.architectures import MN
from workloads.models.families import adapt_weights, build_backbone


def build_mn(*, classes: int = 527, **options) -> nn.Module:
    return build_backbone(MN(family="mn", **options), bands=128, frames=1000, num_classes=classes)


def millions(**options) -> float:
    with torch.device("meta"):  # shapes without data: the widest has 68 million parameters
        return sum(p.numel() for p in build_mn(**options).parameters()) / 1e6


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (0.1, 0.124),
        (0.2, 0.325),
        (0.4, 0.984),
        (0.5, 1.431),
        (0.6, 1.948),
        (0.8, 3.247),
        (1.0, 4.877),
        (1.2, 6.837),
        (1.4, 9.141),
        (2.0, 17.909),
        (3.0, 39.086),
        (4.0, 68.427),
    ],
)
def test_parameters_match_the_width_table(width: float, expected: float) -> None:
    assert millions(width=width) == pytest.approx(expected, abs=0.0005)


def test_parameters_match_the_width_table_where_it_has_two_decimals() -> None:
    assert millions(width=1.6) == pytest.approx(11.71, abs=0.005)


@pytest.mark.parametrize(("classes", "expected"), [(10, 4.215), (20, 4.227), (50, 4.266), (200, 4.458)])
def test_parameters_match_the_table_of_other_class_counts(classes: int, expected: float) -> None:
    assert millions(classes=classes) == pytest.approx(expected, abs=0.0005)


def test_maps_match_the_block_table() -> None:
    torch.set_num_threads(1)
    features = build_mn(width=0.1).eval().features
    sizes, x = [], torch.zeros(1, 1, 128, 1000)
    with torch.no_grad():
        for block in features:
            x = block(x)
            sizes.append(tuple(x.shape[2:]))
    assert sizes == [(64, 500)] * 2 + [(32, 250)] * 2 + [(16, 125)] * 3 + [(8, 63)] * 6 + [(4, 32)] * 4


def test_lower_strides_keep_time_and_mel_resolution() -> None:
    features = build_mn(width=0.1, strides=(2, 2, 1, 1)).eval().features
    with torch.no_grad():
        assert features(torch.zeros(1, 1, 64, 100)).shape[2:] == (8, 13)


@pytest.mark.parametrize(("width", "embedding", "penultimate"), [(0.4, 384, 512), (1.0, 960, 1280), (2.0, 1920, 2560)])
def test_width_scales_embedding_and_penultimate_layer(width: float, embedding: int, penultimate: int) -> None:
    with torch.device("meta"):
        first = build_mn(width=width).classifier[0]
    assert (first.in_features, first.out_features) == (embedding, penultimate)


def test_settings_reach_batch_norm_dropout_and_gates() -> None:
    model = build_mn(width=0.1, dropout=0.3, bn_momentum=0.05)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    gates = [m for m in model.modules() if isinstance(m, SqueezeExcitation)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.05)}
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3]
    assert len(gates) == 8
    assert {type(m.scale_activation) for m in gates} == {nn.Sigmoid}


def test_initial_weights_have_the_reference_s_spread() -> None:
    torch.manual_seed(0)
    model = build_mn()
    stem, gate, last = model.features[0][0], model.features[-2].block[2], model.classifier[3]
    assert stem.weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.15)  # Kaiming, fan out, 144 weights
    assert gate.fc1.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert gate.fc1.bias.abs().max() == gate.fc2.bias.abs().max() == last.bias.abs().max() == 0


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = build_mn(width=0.1, classes=5).train()
    model(torch.randn(4, 128, 100)).square().sum().backward()
    assert parameters_without_gradient(model) == []


def test_weights_of_the_same_classes_are_all_loaded() -> None:
    source, target = build_mn(width=0.1, classes=5), build_mn(width=0.1, classes=5)
    weights, dropped = adapt_weights(source.state_dict(), target, family="mn")
    target.load_state_dict(weights)
    assert dropped == ()
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_the_last_layer_is_dropped_where_classes_differ() -> None:
    state = build_mn(width=0.1, classes=5).state_dict()
    weights, dropped = adapt_weights(state, build_mn(width=0.1, classes=7), family="mn")
    assert dropped == ("classifier.3.weight", "classifier.3.bias")
    assert set(weights) == set(state) - set(dropped)


def test_misfits_are_named() -> None:
    state = build_mn(width=0.1, classes=5).state_dict()
    state["odd"] = state.pop("features.0.0.weight")
    state["classifier.0.bias"] = torch.zeros(3)
    misfit = (
        r"unknown: odd; missing: features\.0\.0\.weight; wrong shape: classifier\.0\.bias is \(3,\), must be \(128,\)"
    )
    with pytest.raises(ValueError, match=misfit):
        adapt_weights(state, build_mn(width=0.1, classes=5), family="mn")


def test_unknown_family_lists_the_known() -> None:
    with pytest.raises(
        ValueError,
        match=r"'resnet'.*mn, dymn, frame_mn, efficientnet, vit, ast, passt, eat, ced, ondevice, wav2vec2, timm",
    ):
        adapt_weights({}, nn.Identity(), family="resnet")
