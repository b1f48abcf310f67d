"""What forms of a network cost: `make bench`. Asserts that they say the same; prints times and asserts none of them.

Forms run in turns in one process on one thread; the ratio of their medians is what can be compared.

Axes: B clips, C channels, M mel bands, F frames, H context, K kernels.
"""

import copy
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tests.official import keyed_state
from workloads.models import build_backbone
from workloads.catalog import CATALOG
from workloads.models.dymn import DynamicBlock, DynamicConv, DynamicReLU

FRAMES = 500  # five seconds at 100 a second, as ESC-50's clips have; half as many where a hop is 20 ms
TURNS = 7

pytestmark = pytest.mark.bench


class PlainConv(DynamicConv):
    """EfficientAT's form: one grouped convolution, the batch folded into its groups, pointwise ones too."""

    def forward(self, x_BCMF: Tensor, h_BH: Tensor, temperature: Tensor) -> Tensor:
        share_BK = (self.choice(h_BH) / temperature).softmax(dim=1)
        kernels = (share_BK @ self.weight.flatten(1)).view(-1, *self.weight.shape[2:])
        folded = x_BCMF.reshape(1, -1, *x_BCMF.shape[2:])
        groups = len(x_BCMF) * (x_BCMF.shape[1] if self.depthwise else 1)
        y = F.conv2d(folded, kernels, stride=self.stride, padding=self.kernel // 2, groups=groups)
        return y.view(len(x_BCMF), -1, *y.shape[2:])


class PlainReLU(DynamicReLU):
    """The definition, word for word."""

    def forward(self, x_BCMF: Tensor, h_BH: Tensor) -> Tensor:
        theta = (2 * self.lines(h_BH).sigmoid() - 1).view(*x_BCMF.shape[:2], 4, 1, 1)
        return torch.maximum(
            (theta[:, :, 0] + 1) * x_BCMF + theta[:, :, 2] * 0.5, theta[:, :, 1] * x_BCMF + theta[:, :, 3] * 0.5
        )


class PlainBlock(DynamicBlock):
    """Gates multiplied one after the other."""

    def forward(self, x_BCMF: Tensor, temperature: Tensor) -> Tensor:
        h_BH, bands_BCM1, frames_BC1F = self.context(x_BCMF)
        y = x_BCMF
        if self.expand is not None and self.expand_norm is not None:
            y = self.expand_norm(self.expand(y, h_BH, temperature))
        y = self.relu(self.depthwise_norm(self.depthwise(y, h_BH, temperature)), h_BH)
        y = self.project_norm(self.project(y * bands_BCM1 * frames_BC1F, h_BH, temperature))
        return x_BCMF + y if self.residual else y


PLAIN = {DynamicConv: PlainConv, DynamicReLU: PlainReLU, DynamicBlock: PlainBlock}


def plainly(model: nn.Module) -> nn.Module:
    """The same weights in the plain form."""
    other = copy.deepcopy(model)
    for module in other.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return other


def backbone(name: str) -> nn.Module:
    model = build_backbone(CATALOG[name].arch, bands=bands_of(name), frames=frames_of(name), num_classes=50)
    state = model.state_dict()  # fresh weights say almost nothing, in which nobody would see a difference
    drawn = keyed_state({name: list(tensor.shape) for name, tensor in state.items()})
    model.load_state_dict(drawn | {name: state[name] for name in ("temperature",) if name in state})
    return model


def bands_of(name: str) -> int:
    return {"ced64": 64, "logmel40": 40}.get(CATALOG[name].front_end.kind, 128)


def frames_of(name: str) -> int:
    return FRAMES // 2 if CATALOG[name].front_end.kind in ("efficientat128", "logmel40") else FRAMES


def mels(name: str, clips: int) -> Tensor:
    return torch.randn(clips, bands_of(name), frames_of(name), generator=torch.Generator().manual_seed(clips))


def inference(model: nn.Module, mel_BMF: Tensor) -> Callable[[], object]:
    model.eval()
    return torch.no_grad()(lambda: model(mel_BMF))


def training(model: nn.Module, mel_BMF: Tensor) -> Callable[[], object]:
    """Forward and backward: what an optimizer does afterwards is the same for all forms."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(mel_BMF).square().sum().backward()

    model.train()
    return step


def medians(tries: dict[str, Callable[[], object]], turns: int = TURNS) -> dict[str, float]:
    """Milliseconds of each, in turns; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in tries}
    for _ in range(turns + 1):
        for name, try_it in tries.items():
            began = time.perf_counter()
            try_it()
            taken[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def assert_same(one: nn.Module, other: nn.Module, mel_BMF: Tensor) -> None:
    """Logits in eval mode and gradients in training, up to what the order of sums changes."""
    with torch.no_grad():
        expected = one.eval()(mel_BMF)
        torch.testing.assert_close(other.eval()(mel_BMF), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    one, other = copy.deepcopy(one), copy.deepcopy(other)  # batch norm learns
    for model in (one, other):
        torch.manual_seed(0)  # dropout
        training(model, mel_BMF)()
    assert (gradients(other) - gradients(one)).norm() < 1e-3 * gradients(one).norm()


@contextmanager
def printing(capsys, title: str) -> Iterator[None]:
    with capsys.disabled():
        print(f"\n{title}")
        yield


@pytest.mark.parametrize("name", ["dymn04", "dymn10"])
def test_dymn_against_the_plain_form(name, capsys):
    ours = backbone(name)
    plain = plainly(ours)
    assert_same(plain, ours, mels(name, 3))
    with printing(capsys, f"{name}, {FRAMES // 100} s a clip: ms plain, ms ours, plain / ours"):
        for clips in (1, 8):
            for what, run in (("inference", inference), ("training", training)):
                if what == "training" and clips == 1:
                    continue  # batch norm over one clip: nobody trains so
                took = medians({"plain": run(plain, mels(name, clips)), "ours": run(ours, mels(name, clips))})
                print(f"  {what:9} batch {clips}  {line(took)}")


@pytest.mark.parametrize("what", ["inference", "training"])
def test_dymn_block_by_block(what, capsys):
    ours = backbone("dymn10")
    plain, clips = plainly(ours), 1 if what == "inference" else 8
    heard: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach())) for block in ours.blocks]
    with torch.no_grad():
        ours.train()(mels("dymn10", clips)) if clips > 1 else ours.eval()(mels("dymn10", clips))
    for hook in hooks:
        hook.remove()
    with printing(capsys, f"dymn10, {what}, batch {clips}, block by block: ms plain, ms ours, plain / ours"):
        for number, x_BCMF in enumerate(heard):
            tries = {
                form: block_run(model.blocks[number], x_BCMF, model.temperature, learns=what == "training")
                for form, model in (("plain", plain), ("ours", ours))
            }
            print(f"  {number:2} {'x'.join(map(str, x_BCMF.shape[1:])):12} {line(medians(tries))}")


def block_run(block: nn.Module, x_BCMF: Tensor, temperature: Tensor, *, learns: bool) -> Callable[[], object]:
    block.train(learns)
    if not learns:
        return torch.no_grad()(lambda: block(x_BCMF, temperature))
    heard = x_BCMF.clone().requires_grad_()
    return lambda: block(heard, temperature).sum().backward()


def line(took: dict[str, float]) -> str:
    slow, fast = took.values()
    return f"{slow:8.2f} {fast:8.2f}  {slow / fast:.2f}"
