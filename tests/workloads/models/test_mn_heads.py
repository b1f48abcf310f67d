"""MN's other heads and gates against the reference's sizes, and against their formulas written out."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.gradients import parameters_without_gradient
from workloads.config.architectures import MN
from workloads.models.backbone import Backbone
from workloads.models.families import adapt_weights, build_backbone
from workloads.models.mn import AttentionPool, ConcurrentGates

HEADS = ["mlp", "fully_convolutional", "attention"]


def build_mn(*, classes: int = 5, bands: int = 128, frames: int = 100, width: float = 0.1, **options) -> Backbone:
    torch.manual_seed(0)
    arch = MN(family="mn", width=width, **options)
    return build_backbone(arch, bands=bands, frames=frames, num_classes=classes)


@pytest.mark.parametrize(
    ("strides", "gmacs"),
    [((2, 2, 2, 2), 0.60), ((2, 2, 2, 1), 1.15), ((2, 2, 1, 1), 3.98)],
    ids=["2222", "2221", "2211"],
)
def test_the_fully_convolutional_head_has_the_reference_s_size(strides: tuple[int, ...], gmacs: float) -> None:
    with torch.device("meta"):
        model = build_mn(classes=527, frames=1000, width=1.0, head="fully_convolutional", strides=strides).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 128, 1000))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(3.48, abs=0.005)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.005)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_logits_an_embedding_and_a_sequence(head: str) -> None:
    model = build_mn(head=head).eval()
    with torch.no_grad():
        logits, embedding, sequence, _ = model.outputs(torch.randn(2, 128, 100))
    assert (logits.shape, embedding.shape, sequence.shape) == ((2, 5), (2, 96), (2, 4, 96))
    assert torch.allclose(sequence.mean(1), embedding, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_gradients_and_is_dropped_where_classes_differ(head: str) -> None:
    model = build_mn(head=head, se_axes=("c", "f")).train()
    model(torch.randn(4, 128, 100)).square().sum().backward()
    assert parameters_without_gradient(model) == []
    other = build_mn(classes=7, head=head, se_axes=("c", "f"))
    weights, dropped = adapt_weights(model.state_dict(), other, family="mn")
    assert dropped
    assert all(name.startswith("classifier.") for name in dropped)
    assert set(weights) == set(model.state_dict()) - set(dropped)


def test_a_fully_convolutional_head_averages_the_scores_of_all_positions() -> None:
    model = build_mn(head="fully_convolutional").eval()
    with torch.no_grad():
        maps = model.features(torch.ones(1, 1, 128, 100))
        weight = model.classifier[0].weight.flatten(1)
        scores = torch.einsum("cd,bdmf->bcmf", weight, maps) / (1 + 1e-5) ** 0.5  # batch norm as initialised
        assert torch.allclose(model(torch.ones(1, 128, 100)), scores.mean((2, 3)), atol=1e-6)


def test_attention_pools_scores_by_weights_that_sum_to_one_over_time() -> None:
    torch.manual_seed(0)
    pool, x = AttentionPool(6, 3), torch.randn(2, 6, 4, 5)
    nn.init.normal_(pool.project.weight)
    pool.mix.data = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = torch.zeros(2, 3)
    for head in range(4):
        for tag in range(3):
            row = head * 3 + tag
            x_BDP = x.mean(2)
            weights = torch.sigmoid(torch.einsum("d,bdp->bp", pool.project.weight[row], x_BDP) + pool.project.bias[row])
            scores = torch.einsum("d,bdp->bp", pool.project.weight[12 + row], x_BDP) + pool.project.bias[12 + row]
            expected[:, tag] += pool.mix[head] * (weights / weights.sum(1, keepdim=True) * scores).sum(1)
    assert torch.allclose(pool(x), expected, atol=1e-5)


@pytest.mark.parametrize("join", ["max", "avg", "add", "min"])
def test_gates_of_several_axes_are_combined_element_by_element(join: str) -> None:
    torch.manual_seed(0)
    gates, x = ConcurrentGates({"c": 8, "f": 12, "t": 20}, join), torch.randn(2, 8, 12, 20)
    gated = []
    for axis, others in (("c", (2, 3)), ("f", (1, 3)), ("t", (1, 2))):
        gate = gates.axes[axis]
        scale = torch.sigmoid(gate.fc2(torch.relu(gate.fc1(x.mean(others)))))
        for other in others:
            scale = scale.unsqueeze(other)
        gated.append(x * scale)
    stacked = torch.stack(gated)
    expected = {"max": stacked.amax(0), "avg": stacked.mean(0), "add": stacked.sum(0), "min": stacked.amin(0)}[join]
    assert torch.allclose(gates(x), expected, atol=1e-6)


def test_gates_over_bands_fit_the_maps_and_squeeze_by_four() -> None:
    model = build_mn(se_axes=("f",))
    gates = [module.axes["f"] for module in model.modules() if isinstance(module, ConcurrentGates)]
    # 128 bands are 16, 8 and 4 where the block table has a gate; a quarter of that, but at least 8
    assert [gate.fc1.in_features for gate in gates] == [16] * 3 + [8] * 2 + [4] * 3
    assert {gate.fc1.out_features for gate in gates} == {8}


def test_without_axes_there_are_no_gates() -> None:
    names = [type(module).__name__ for module in build_mn(se_axes=()).modules()]
    assert "SqueezeExcitation" not in names
    assert "ConcurrentGates" not in names


def test_gates_over_frames_tie_the_network_to_its_clip_length() -> None:
    model = build_mn(se_axes=("c", "t")).eval()
    assert model(torch.zeros(1, 128, 100)).shape == (1, 5)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 128, 200))
