"""DyMN against EfficientAT's tables, and its parts against their definitions, computed clip by clip."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.gradients import parameters_without_gradient
from tests.resumed import rows_uninterrupted_and_resumed
from workloads.config.architectures import DyMN
from workloads.evaluate.predict import load_tagger
from workloads.models.dymn import DynamicConv, DynamicReLU
from workloads.models.families import adapt_weights, build_backbone


def build_dymn(*, classes: int = 527, **options) -> nn.Module:
    return build_backbone(DyMN(family="dymn", **options), bands=128, frames=1000, num_classes=classes)


@pytest.mark.parametrize(("width", "params", "macs"), [(0.4, 1.961, 0.118), (1.0, 10.548, 0.582), (2.0, 39.966, 2.222)])
def test_sizes_match_the_table(width: float, params: float, macs: float) -> None:
    with torch.device("meta"):  # shapes without data
        model, mel_BMF = build_dymn(width=width).eval(), torch.zeros(1, 128, 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=0.0005)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(mel_BMF)
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, rel=0.01)


def test_contexts_match_the_reference() -> None:
    sizes = [block.relu.coefficients.in_features for block in build_dymn(width=1.0, classes=2).blocks]
    assert sizes == [32] * 6 + [64, 48, 48, 48, 120] + [128] * 4


@pytest.mark.parametrize(("kernel", "stride", "outputs"), [(1, 1, 24), (3, 1, 16), (5, 2, 16)])
def test_each_clip_has_its_own_kernel(kernel: int, stride: int, outputs: int) -> None:
    torch.manual_seed(0)
    conv = DynamicConv(16, outputs, context=8, kernel=kernel, stride=stride)
    x, h, temperature = torch.randn(3, 16, 12, 14), torch.randn(3, 8), torch.tensor(2.0)
    attention_BZ = (conv.kernel_attention(h) / 2.0).softmax(1)
    groups = 16 if kernel > 1 else 1
    for index in range(3):
        mixed = sum(share * weight for share, weight in zip(attention_BZ[index], conv.weight, strict=True))
        alone = F.conv2d(x[index : index + 1], mixed, stride=stride, padding=kernel // 2, groups=groups)
        assert torch.allclose(conv(x, h, temperature)[index], alone[0], atol=1e-5)


def test_the_dynamic_relu_is_the_larger_of_two_linear_functions() -> None:
    relu = DynamicReLU(2, context=3)
    nn.init.zeros_(relu.coefficients.weight)
    # slopes a1, a2 and offsets b1, b2 of each channel
    relu.coefficients.bias.data = torch.tensor([0.0, 1.0, 0.5, -1.0, 0.0, 0.0, 0.0, 0.0])
    theta = 2 * relu.coefficients.bias[:4].sigmoid() - 1
    x = torch.linspace(-2, 2, 5).view(1, 1, 1, 5).expand(1, 2, 1, 5)
    y = relu(x, torch.randn(1, 3))
    assert torch.allclose(y[:, 0], torch.maximum(x[:, 0] + theta[2] / 2, theta[1] * x[:, 0] + theta[3] / 2))
    assert torch.allclose(y[:, 1], x[:, 1].clamp(min=0))  # with all zeros it is an ordinary ReLU


def test_temperature_falls_with_the_models_own_steps_and_is_saved() -> None:
    model = build_dymn(width=0.1, classes=2, temperature=30.0, cooled_after=0.5)
    temperatures = []
    for own_step in (0, 25, 50, 100):
        model.set_progress(own_step, 100)
        temperatures.append(model.temperature.item())
    assert temperatures == [30.0, 15.5, 1.0, 1.0]
    assert "temperature" in model.state_dict()


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = build_dymn(width=0.1, classes=5).train()
    model(torch.randn(4, 128, 100)).square().sum().backward()
    assert parameters_without_gradient(model) == []


def test_clips_do_not_influence_each_other() -> None:
    torch.manual_seed(0)
    model, mel_BMF = build_dymn(width=0.1, classes=5).eval(), torch.randn(3, 128, 100)
    with torch.no_grad():
        assert torch.allclose(model(mel_BMF)[1:2], model(mel_BMF[1:2]), atol=1e-5)


def test_the_last_layer_is_dropped_where_classes_differ() -> None:
    state = build_dymn(width=0.1, classes=5).state_dict()
    weights, dropped = adapt_weights(state, build_dymn(width=0.1, classes=7), family="dymn")
    assert dropped == ("classifier.3.weight", "classifier.3.bias")
    assert set(weights) == set(state) - set(dropped)


def test_a_run_with_it_resumes_with_the_same_bits(tiny, start) -> None:
    """The temperature follows the model's own steps, also across an interruption."""
    dymn = '{family="dymn", width=0.1, bn_momentum=0.1, cooled_after=0.9}'
    settings = ["schedule.burn_in=3", "schedule.period=3", "schedule.turns=2", "models.cnn.average.kind=ema"]
    recipe = tiny("demo", *settings, f"models.cnn.arch={dymn}")
    one, other = rows_uninterrupted_and_resumed(start, recipe)
    assert one["cnn"]["weights_sha256"] == other["cnn"]["weights_sha256"]
    assert one["cnn"]["test"] == other["cnn"]["test"]
    tagger, _ = load_tagger(Path(other["cnn"]["checkpoint"]))
    assert tagger.backbone.temperature.item() < 30
