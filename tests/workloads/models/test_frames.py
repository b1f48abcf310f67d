"""Frame logits: FrameMN against its table, and heads that read every step; clip logits are the pooled ones."""

import math
from typing import Any

import pytest
import torch

from workloads.config.architectures import AST, CED, MN, Arch, FrameMN, ViT, gives_frames
from workloads.config.recipe import FrontEnd, Model
from workloads.models.families import adapt_weights, build_backbone
from workloads.models.frame_pooling import pool_frames
from workloads.models.size import model_size

K = 447  # classes of AudioSet Strong


def channels(count: int, width: float) -> int:
    """The nearest multiple of 8, of which no more than a tenth is lost (reference/efficientat.md section 1)."""
    scaled = count * width
    nearest = max(8, int(scaled + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * scaled else nearest + 8


def table_parameters(width: float, heads: int) -> int:
    """The parameters of the block table, added up: convolutions, batch norms, gates over channels and the heads."""
    table = [  # in, kernel, expanded, out, gate
        *((16, 3, 16, 16, 0), (16, 3, 64, 24, 0), (24, 3, 72, 24, 0), (24, 5, 72, 40, 1)),
        *((40, 5, 120, 40, 1), (40, 5, 120, 40, 1), (40, 3, 240, 80, 0), (80, 3, 200, 80, 0)),
        *((80, 3, 184, 80, 0), (80, 3, 184, 80, 0), (80, 3, 480, 112, 1), (112, 3, 672, 112, 1)),
        *((112, 5, 672, 160, 1), (160, 5, 960, 160, 1), (160, 5, 960, 160, 1)),
    ]
    total = 9 * channels(16, width) + 2 * channels(16, width)
    for inputs, kernel, expanded, outputs, gate in table:
        i, e, o = (channels(count, width) for count in (inputs, expanded, outputs))
        squeezed = channels(e // 4, 1)
        total += (i * e + 2 * e if e != i else 0) + kernel**2 * e + 2 * e + e * o + 2 * o
        total += gate * (2 * e * squeezed + squeezed + e)
    last = channels(160, width)
    return total + last * 6 * last + 2 * 6 * last + heads * (6 * last * K + K)


@pytest.mark.parametrize(
    ("width", "pool", "millions", "giga_macs"),
    [
        (0.6, "own_head", 1.615, 0.441),
        (1.0, "own_head", 3.831, 1.055),
        (0.6, "max", 1.357, 0.441),
        (1.0, "linear_softmax", 3.401, 1.055),
    ],
)
def test_frame_mn_has_the_sizes_of_its_table(width: float, pool: Any, millions: float, giga_macs: float) -> None:
    """reference/frames.md section 5."""
    arch = FrameMN(family="frame_mn", width=width, frame_pool=pool)
    model = Model(arch=arch, front_end=FrontEnd(kind="efficientat128"))
    size = model_size(model, num_classes=K, clip_seconds=10.0, clip_rate=32_000)
    assert size.params == table_parameters(width, heads=2 if pool == "own_head" else 1)
    assert size.params / 1e6 == pytest.approx(millions, abs=0.0005)
    assert size.macs / 1e9 == pytest.approx(giga_macs, rel=0.01)


def test_maps_of_frame_mn_lose_frequency_and_keep_time() -> None:
    model = build_backbone(FrameMN(family="frame_mn", width=0.1), bands=128, frames=1000, num_classes=3).eval()
    sizes, x = [], torch.zeros(1, 1, 128, 1000)
    with torch.no_grad():
        for block in model.features:
            x = block(x)
            sizes.append(tuple(x.shape[2:]))
        outputs = model.outputs(torch.zeros(2, 128, 1000))
    rows = [64, 64, 32, 16, 16, 16, 8, 8, 4, 4, 4, 2, 2, 2, 2, 1, 1]
    assert sizes == [(row, 500 if number < 2 else 250) for number, row in enumerate(rows)]
    assert outputs.frames_BPC.shape == (2, 250, 3)
    assert outputs.sequence_BPD.shape == (2, 250, 6 * channels(160, 0.1))
    assert model.time_steps(1000, 250) == (-1.5, 4), "40 ms of frames of 10 ms"


@pytest.mark.parametrize("pool", ["max", "linear_softmax"])
@pytest.mark.parametrize(
    "arch",
    [
        FrameMN(family="frame_mn", width=0.1),
        ViT(family="vit", dim=16, depth=1, heads=2),
        AST(family="ast", size="tiny", stride=16),
        CED(family="ced", size="tiny"),
    ],
    ids=lambda arch: arch.family,
)
def test_clip_logits_are_the_pooled_frames(arch: Any, pool: Any) -> None:
    torch.manual_seed(0)
    arch = type(arch)(**vars(arch) | {"frame_pool": pool})
    model = build_backbone(arch, bands=64, frames=100, num_classes=5).eval()
    with torch.no_grad():
        outputs = model.outputs(torch.randn(2, 64, 100))
    assert outputs.frames_BPC.shape == (2, outputs.sequence_BPD.shape[1], 5)
    assert torch.equal(outputs.logits_BC, pool_frames(outputs.frames_BPC, pool))
    assert outputs.frames_BPC.std(1).min() > 0, "steps differ"
    assert gives_frames(arch)


def test_frames_of_a_clip_of_several_windows_are_pooled_together() -> None:
    torch.manual_seed(0)
    model = build_backbone(CED(family="ced", frame_pool="max"), bands=64, frames=2000, num_classes=5).eval()
    with torch.no_grad():
        outputs = model.outputs(torch.randn(1, 64, 2000))
    assert outputs.frames_BPC.shape == (1, 63 + 62, 5), "the padding at the end has none"
    assert torch.equal(outputs.logits_BC, outputs.frames_BPC.amax(1))


def test_a_fully_convolutional_mn_gives_the_frames_whose_mean_its_logits_are() -> None:
    arch = MN(family="mn", width=0.1, head="fully_convolutional")
    model = build_backbone(arch, bands=128, frames=1000, num_classes=5).eval()
    with torch.no_grad():
        outputs = model.outputs(torch.randn(2, 128, 1000))
    assert outputs.frames_BPC.shape == (2, 32, 5)
    torch.testing.assert_close(outputs.frames_BPC.mean(1), outputs.logits_BC)


@pytest.mark.parametrize("arch", [MN(family="mn", width=0.1), ViT(family="vit", dim=16, depth=1, heads=2)])
def test_other_networks_give_none(arch: Arch) -> None:
    model = build_backbone(arch, bands=64, frames=100, num_classes=5).eval()
    assert model.outputs(torch.zeros(1, 64, 100)).frames_BPC is None
    assert not gives_frames(arch)


def test_linear_softmax_weighs_probabilities_by_themselves() -> None:
    p_BPC = torch.tensor([[[0.9], [0.3], [0.0]], [[0.2], [0.2], [0.2]]])
    pooled_BC = pool_frames(p_BPC.logit(), "linear_softmax").sigmoid()
    torch.testing.assert_close(pooled_BC, torch.tensor([[(0.81 + 0.09) / 1.2], [0.2]]))


@pytest.mark.parametrize("level", [-200.0, 200.0])
def test_linear_softmax_is_finite_where_probabilities_round(level: float) -> None:
    frames_BPC = torch.full((1, 4, 1), level, requires_grad=True)
    pooled = pool_frames(frames_BPC, "linear_softmax")
    pooled.sum().backward()
    assert pooled.item() == pytest.approx(level)
    assert math.isfinite(frames_BPC.grad.abs().sum().item())


def test_frame_mn_begins_with_the_body_of_an_mn() -> None:
    mn = build_backbone(MN(family="mn", width=0.1), bands=128, frames=100, num_classes=7)
    model = build_backbone(FrameMN(family="frame_mn", width=0.1), bands=128, frames=100, num_classes=5)
    weights, dropped = adapt_weights(mn.state_dict(), model, family="frame_mn")
    assert dropped == ("head.weight", "head.bias")
    model.load_state_dict(model.state_dict() | weights)
    assert torch.equal(model.features[5].block[0][0].weight, mn.features[5].block[0][0].weight)
    other = build_backbone(MN(family="mn", width=0.2), bands=128, frames=100, num_classes=7)
    with pytest.raises(ValueError, match="these weights do not fit FrameMobileNet: unknown: features"):
        adapt_weights(other.state_dict(), model, family="frame_mn")
