"""Averages compared with closed forms, and resumed bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workloads.config.recipe import Average
from workloads.distill.averaging import WeightAverage, build_average


def one_weight_model(value: float = 0.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    return set_weight(model, value)


def set_weight(model: nn.Linear, value: float) -> nn.Linear:
    nn.init.constant_(model.weight, value)
    return model


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def fake_step(model: nn.Module, step: int) -> None:
    """Change weights, running statistics and the counter as a training step would."""
    torch.manual_seed(step)
    model.train()(torch.randn(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_none_delivers_the_last_weights_as_a_copy() -> None:
    model = one_weight_model(1.0)
    average = build_average(Average(kind="none"), model)
    set_weight(model, 3.0)
    average.update(model)
    delivered = average.delivered_state(model)
    set_weight(model, 4.0)
    assert delivered["weight"].item() == 3.0
    assert average.evaluation_model(model) is model


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_ema_equals_the_closed_form(decay: float) -> None:
    model = one_weight_model(100.0)
    average = build_average(Average(kind="ema", decay=decay), model)
    values = [float(step * step) for step in range(1, 40)]
    expected = values[0]
    for updates, value in enumerate(values):
        average.update(set_weight(model, value))
        if updates:
            used = min(decay, (1 + updates) / (10 + updates))
            expected = used * expected + (1 - used) * value
    assert average.delivered_state(model)["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == values[-1]


def test_ema_averages_running_statistics_and_copies_counters() -> None:
    model = small_net()
    average = build_average(Average(kind="ema", decay=0.99), model)
    means = []
    for step in range(7):
        fake_step(model, step)
        average.update(model)
        means.append(model[1].running_mean.clone())
    expected = means[0]
    for updates, mean in enumerate(means[1:], start=1):
        expected = torch.lerp(expected, mean, 1 - (1 + updates) / (10 + updates))
    delivered = average.delivered_state(model)
    torch.testing.assert_close(delivered["1.running_mean"], expected)
    assert delivered["1.num_batches_tracked"].item() == 7


def test_ema_is_torchs_lerp_of_each_tensor_to_the_bit() -> None:
    model = small_net()
    average = build_average(Average(kind="ema", decay=0.6), model)
    expected: dict[str, torch.Tensor] = {}
    for step in range(12):
        fake_step(model, step)
        average.update(model)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            copied = step == 0 or not tensor.is_floating_point()
            expected[name] = tensor.clone() if copied else torch.lerp(expected[name], tensor, 1 - decay)
    assert equal(average.delivered_state(model), expected)


def test_ema_leaves_constants_alone() -> None:
    """Buffers outside the state dict, such as a front end's filterbanks, need no copy in each step."""
    model = small_net()
    model[0].register_buffer("bank", torch.zeros(3), persistent=False)
    average = build_average(Average(kind="ema"), model)
    model[0].bank.fill_(1.0)
    average.update(model)
    assert torch.equal(average.evaluation_model(model)[0].bank, torch.zeros(3))


def test_ema_is_scored_as_a_separate_frozen_module() -> None:
    model = small_net()
    average = build_average(Average(kind="ema", decay=0.9), model)
    for step in range(3):
        fake_step(model, step)
        average.update(model)
    averaged = average.evaluation_model(model)
    assert not averaged.training
    assert not any(parameter.requires_grad for parameter in averaged.parameters())
    assert equal(dict(averaged.state_dict()), average.delivered_state(model))
    assert not equal(dict(model.state_dict()), average.delivered_state(model))


def test_best_is_the_mean_of_the_k_best() -> None:
    model = one_weight_model()
    average = build_average(Average(kind="best", best=2), model)
    for score, value in [(0.5, 1.0), (0.9, 2.0), (0.1, 3.0), (0.7, 4.0), (0.6, 5.0)]:
        average.on_validation(score, set_weight(model, value))
    assert average.delivered_state(model)["weight"].item() == 3.0  # of 2 and 4
    assert average.scalars() == {"kind": "best", "scores": [0.9, 0.7]}
    assert average.evaluation_model(model) is model


def test_best_keeps_the_earlier_of_equal_scores() -> None:
    model = one_weight_model()
    average = build_average(Average(kind="best", best=1), model)
    for value in (1.0, 2.0):
        average.on_validation(0.5, set_weight(model, value))
    assert average.delivered_state(model)["weight"].item() == 1.0


def test_best_takes_counters_from_the_best_model() -> None:
    model = small_net()
    average = build_average(Average(kind="best", best=2), model)
    for step, score in enumerate([0.1, 0.9, 0.5]):
        fake_step(model, step)
        average.on_validation(score, model)
    assert average.delivered_state(model)["1.num_batches_tracked"].item() == 2


class WithSetting(nn.Module):
    """Batch norm beside a buffer that is a setting, such as DyMN's temperature or a transformer's grid."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("setting", torch.tensor(30.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


@pytest.mark.parametrize(("kind", "expected"), [("ema", 30.0 - 0.7 * 8), ("best", 30.0 - 0.7 * 3)])
def test_a_setting_is_copied_not_averaged(kind: str, expected: float) -> None:
    """EMA delivers the last one, `best` that of the best model; running means are averaged all the same."""
    model = WithSetting()
    average = build_average(Average(kind=kind, decay=0.999, best=3), model)
    means = []
    for step in range(9):
        model.setting.fill_(30.0 - 0.7 * step)
        fake_step(model, step)
        average.update(model)
        average.on_validation({2: 0.8, 3: 0.9, 5: 0.7}.get(step, 0.1), model)
        means.append(model.norm.running_mean.clone())
    delivered = average.delivered_state(model)
    assert torch.equal(delivered["setting"], torch.tensor(expected))
    if kind == "best":
        torch.testing.assert_close(delivered["norm.running_mean"], (means[2] + means[3] + means[5]) / 3)
    else:
        assert not torch.equal(delivered["norm.running_mean"], means[-1])


def test_best_delivers_the_last_weights_before_any_validation() -> None:
    model = one_weight_model(1.0)
    average = build_average(Average(kind="best"), model)
    assert average.delivered_state(set_weight(model, 2.0))["weight"].item() == 2.0


def train_on(average: WeightAverage, model: nn.Module, steps: range) -> None:
    for step in steps:
        fake_step(model, step)
        average.update(model)
        if step % 3 == 0:
            average.on_validation((step * 7 % 10) / 10, model)


@pytest.mark.parametrize("kind", ["none", "ema", "best"])
def test_a_resumed_average_continues_bit_for_bit(kind: str, tmp_path: Path) -> None:
    settings = Average(kind=kind, decay=0.97, best=2)
    model, resumed_model = small_net(), small_net()
    uninterrupted = build_average(settings, model)
    train_on(uninterrupted, model, range(10))
    save_file(
        {name: tensor.contiguous() for name, tensor in uninterrupted.tensors().items()}, tmp_path / "a.safetensors"
    )
    scalars = json.loads(json.dumps(uninterrupted.scalars()))

    resumed_model.load_state_dict(model.state_dict())
    resumed = build_average(settings, resumed_model)
    resumed.load(load_file(tmp_path / "a.safetensors"), scalars)
    train_on(uninterrupted, model, range(10, 20))
    train_on(resumed, resumed_model, range(10, 20))
    assert equal(uninterrupted.delivered_state(model), resumed.delivered_state(resumed_model))
    assert uninterrupted.scalars() == resumed.scalars()
    assert equal(uninterrupted.tensors(), resumed.tensors())


def test_a_checkpoint_of_another_kind_is_refused() -> None:
    model = one_weight_model()
    scalars = build_average(Average(kind="ema"), model).scalars()
    with pytest.raises(ValueError, match=r"average\.kind = 'best': the checkpoint was made with 'ema'"):
        build_average(Average(kind="best"), model).load({}, scalars)
