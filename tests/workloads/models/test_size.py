"""A model's size against the papers' tables, closed formulas, and the state of a real optimizer."""

import pytest
import torch

from workloads.config.architectures import AST, CED, MN, OnDevice, ViT
from workloads.config.recipe import FrontEnd, Model
from workloads.models.size import model_size
from workloads.models.tagger import build_tagger

MN_TABLE = [
    (0.1, 0.124, 0.018),
    (0.2, 0.325, 0.040),
    (0.4, 0.984, 0.111),
    (0.5, 1.431, 0.160),
    (0.6, 1.948, 0.223),
    (0.8, 3.247, 0.367),
    (1.0, 4.877, 0.541),
    (1.2, 6.837, 0.805),
    (1.4, 9.141, 1.042),
    (1.6, 11.71, 1.323),
    (2.0, 17.909, 2.059),
    (3.0, 39.086, 4.555),
    (4.0, 68.427, 8.028),
]


@pytest.mark.parametrize(("width", "params", "macs"), MN_TABLE)
def test_mn_has_the_sizes_of_its_table(width: float, params: float, macs: float) -> None:
    """reference/efficientat.md section 1; its multiply-adds count biases, which torch's counter does not."""
    model = Model(arch=MN(family="mn", width=width), front_end=FrontEnd(kind="efficientat128"))
    size = model_size(model, num_classes=527, clip_seconds=10.0, clip_rate=32_000)
    assert size.params / 1e6 == pytest.approx(params, abs=0.0005 if width != 1.6 else 0.005)  # two places in the table
    assert size.macs / 1e9 == pytest.approx(macs, rel=0.01, abs=0.0005)  # three places


def transformer_macs(tokens: int, *, dim: int, depth: int) -> int:
    """Projections and MLP of every block, and both products of attention (reference/ced.md section 6)."""
    return depth * (12 * tokens * dim * dim + 2 * tokens * tokens * dim)


def test_attention_is_counted() -> None:
    """On a CPU torch's counter does not count the fused kernel, which is half of an AST's work."""
    model = Model(arch=AST(family="ast", size="tiny"), front_end=FrontEnd(kind="kaldi128", frames=1024))
    size = model_size(model, num_classes=527, clip_seconds=10.0, clip_rate=16_000)
    patches = 12 * 101  # reference/cmkd.md 2.1
    assert size.macs == transformer_macs(patches + 2, dim=192, depth=12) + patches * 256 * 192 + 527 * 192


def test_ced_follows_the_formula_of_its_reference() -> None:
    model = Model(arch=CED(family="ced", size="tiny"), front_end=FrontEnd(kind="ced64"))
    size = model_size(model, num_classes=527, clip_seconds=10.0, clip_rate=32_000)  # does not depend on the clips' rate
    assert size.macs == 248 * 256 * 192 + transformer_macs(248, dim=192, depth=12) + 527 * 192
    assert size.params / 1e6 == pytest.approx(5.50, abs=0.005)


def test_a_network_that_switches_autocast_off_can_be_counted() -> None:
    model = Model(arch=OnDevice(family="ondevice", variant="tc_resnet"), front_end=FrontEnd(kind="logmel40"))
    assert model_size(model, num_classes=12, clip_seconds=1.0, clip_rate=16_000).macs > 0


@pytest.mark.parametrize("arch", [MN(family="mn", width=0.1), ViT(family="vit", dim=16, depth=1, heads=2)])
def test_bytes_are_those_of_a_model_and_an_optimizer_that_has_stepped(arch: MN | ViT) -> None:
    model = Model(arch=arch)
    size = model_size(model, num_classes=3, clip_seconds=1.0, clip_rate=16_000)
    tagger = build_tagger(
        model, name="m", tags=("a", "b", "c"), labels="multi", clip_seconds=1.0, clip_rate=16_000, seed=0
    )
    optimizer = torch.optim.AdamW(tagger.parameters())
    tagger.train()(torch.randn(2, 64, 100)).square().sum().backward()
    optimizer.step()
    slots = optimizer.state_dict()["state"].values()
    assert size.optimizer_bytes == sum(tensor.nbytes for slot in slots for tensor in slot.values())
    assert size.weight_bytes == sum(tensor.nbytes for tensor in tagger.state_dict().values())
    assert size.params == sum(parameter.numel() for parameter in tagger.parameters())


def test_counting_does_not_advance_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model_size(Model(arch=MN(family="mn", width=0.1)), num_classes=2, clip_seconds=1.0, clip_rate=16_000)
    assert torch.equal(torch.rand(3), expected)
