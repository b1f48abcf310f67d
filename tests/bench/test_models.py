"""What forms of a network cost: `make bench`. Asserts that their outputs are equal; prints times and asserts none.

Forms run in turns in one process on one thread; the median of the turns' ratios is what can be compared.

Axes: B clips, M mel bands, F frames, D features or channels, Z kernels.
"""

import copy
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.hearing import TRANSFORMERS, taught
from tests.hearing import mels as kinds_of_mels
from tests.official import keyed_state
from workloads.export.fold import fold_batch_norm
from workloads.models.catalog import CATALOG
from workloads.models.dymn import DynamicBlock, DynamicConv, DynamicReLU
from workloads.models.families import build_backbone

FRAMES = 500  # five seconds at 100 a second, as ESC-50's clips have; half as many where a hop is 20 ms
TURNS = 7
TAUGHT_FRAMES = 100

pytestmark = pytest.mark.bench


class PlainConv(DynamicConv):
    """EfficientAT's form: one grouped convolution with the batch folded into its groups, also where it is pointwise."""

    def forward(self, x_BDMF: Tensor, h_BD: Tensor, temperature: Tensor) -> Tensor:
        attention_BZ = (self.kernel_attention(h_BD) / temperature).softmax(dim=1)
        kernels = (attention_BZ @ self.weight.flatten(1)).view(-1, *self.weight.shape[2:])
        folded = x_BDMF.reshape(1, -1, *x_BDMF.shape[2:])
        groups = len(x_BDMF) * (x_BDMF.shape[1] if self.depthwise else 1)
        y = F.conv2d(folded, kernels, stride=self.stride, padding=self.kernel // 2, groups=groups)
        return y.view(len(x_BDMF), -1, *y.shape[2:])


class PlainReLU(DynamicReLU):
    """The definition: the maximum of two linear functions."""

    def forward(self, x_BDMF: Tensor, h_BD: Tensor) -> Tensor:
        theta = (2 * self.coefficients(h_BD).sigmoid() - 1).view(*x_BDMF.shape[:2], 4, 1, 1)
        return torch.maximum(
            (theta[:, :, 0] + 1) * x_BDMF + theta[:, :, 2] * 0.5, theta[:, :, 1] * x_BDMF + theta[:, :, 3] * 0.5
        )


class PlainBlock(DynamicBlock):
    """Gates multiplied one after the other."""

    def forward(self, x_BDMF: Tensor, temperature: Tensor) -> Tensor:
        h_BD, band_gates_BDM1, frame_gates_BD1F = self.context(x_BDMF)
        y = x_BDMF
        if self.expand is not None and self.expand_norm is not None:
            y = self.expand_norm(self.expand(y, h_BD, temperature))
        y = self.relu(self.depthwise_norm(self.depthwise(y, h_BD, temperature)), h_BD)
        y = self.project_norm(self.project(y * band_gates_BDM1 * frame_gates_BD1F, h_BD, temperature))
        return x_BDMF + y if self.residual else y


PLAIN = {DynamicConv: PlainConv, DynamicReLU: PlainReLU, DynamicBlock: PlainBlock}


def in_plain_form(model: nn.Module) -> nn.Module:
    """The same weights in the plain form."""
    other = copy.deepcopy(model)
    for module in other.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return other


def backbone(name: str) -> nn.Module:
    """With weights by which its logits depend on the input: initial or drawn ones would hide a difference."""
    arch, bands = CATALOG[name].arch, bands_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_backbone(arch, bands=bands, frames=frames_of(name), num_classes=50)
    if not isinstance(arch, TRANSFORMERS):
        return taught(model, kinds_of_mels(bands, TAUGHT_FRAMES, kinds=12), kinds=12)
    model.load_state_dict(keyed_state({name: list(tensor.shape) for name, tensor in model.state_dict().items()}))
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
    """Forward and backward: the optimizer step is the same for all forms."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(mel_BMF).square().sum().backward()

    model.train()
    return step


def timings(forms: dict[str, Callable[[], object]], turns: int = TURNS) -> str:
    """Median milliseconds of two forms in turns, and the median of the turns' ratios; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(turns + 1):
        for name, call in forms.items():
            started = time.perf_counter()
            call()
            taken[name].append(1000 * (time.perf_counter() - started))
    one, other = (values[1:] for values in taken.values())
    ratio = statistics.median(slow / fast for slow, fast in zip(one, other, strict=True))
    return f"{statistics.median(one):8.2f} {statistics.median(other):8.2f}  {ratio:.2f}"


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def assert_same(one: nn.Module, other: nn.Module, mel_BMF: Tensor) -> None:
    """Logits in eval mode and gradients in training, up to what the order of sums changes."""
    with torch.no_grad():
        expected = one.eval()(mel_BMF)
        torch.testing.assert_close(other.eval()(mel_BMF), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    one, other = copy.deepcopy(one), copy.deepcopy(other)  # training changes running statistics
    for model in (one, other):
        torch.manual_seed(0)  # dropout
        training(model, mel_BMF)()
    difference = (gradients(other) - gradients(one)).norm() / gradients(one).norm()
    assert difference < 0.01, difference  # a value that rounds to the other side of an activation's kink moves 0.002


@contextmanager
def printing(capsys, title: str) -> Iterator[None]:
    with capsys.disabled():
        print(f"\n{title}")
        yield


@pytest.mark.parametrize("name", ["dymn04", "dymn10"])
def test_dymn_against_the_plain_form(name, capsys):
    ours = backbone(name)
    plain = in_plain_form(ours)
    assert_same(plain, ours, mels(name, 3))
    with printing(capsys, f"{name}, {FRAMES // 100} s a clip: ms plain, ms ours, plain / ours"):
        for clips in (1, 8):
            for what, run in (("inference", inference), ("training", training)):
                forms = {"plain": run(plain, mels(name, clips)), "ours": run(ours, mels(name, clips))}
                print(f"  {what:9} batch {clips}  {timings(forms, turns=41 if clips == 1 else 11)}")


@pytest.mark.parametrize("what", ["inference", "training"])
def test_dymn_block_by_block(what, capsys):
    ours, clips = backbone("dymn10"), 1 if what == "inference" else 8
    inputs: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach())) for block in ours.blocks]
    with torch.no_grad():
        ours.train()(mels("dymn10", clips)) if clips > 1 else ours.eval()(mels("dymn10", clips))
    for hook in hooks:
        hook.remove()
    plain = in_plain_form(ours)  # copied now: that forward has changed batch norm's running statistics
    with printing(capsys, f"dymn10, {what}, batch {clips}, block by block: ms plain, ms ours, plain / ours"):
        for number, x_BDMF in enumerate(inputs):
            with torch.no_grad():
                outputs = [model.eval().blocks[number](x_BDMF.clone(), model.temperature) for model in (plain, ours)]
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
            forms = {
                form: block_run(model.blocks[number], x_BDMF, model.temperature, learns=what == "training")
                for form, model in (("plain", plain), ("ours", ours))
            }
            print(f"  {number:2} {'x'.join(map(str, x_BDMF.shape[1:])):12} {timings(forms)}")


def block_run(block: nn.Module, x_BDMF: Tensor, temperature: Tensor, *, learns: bool) -> Callable[[], object]:
    block.train(learns)
    if not learns:
        return torch.no_grad()(lambda: block(x_BDMF, temperature))
    leaf_BDMF = x_BDMF.clone().requires_grad_()
    return lambda: block(leaf_BDMF, temperature).sum().backward()


@pytest.mark.parametrize("name", ["mn04", "mn10"])
def test_batch_norm_folded_into_convolutions(name, capsys):
    model = backbone(name).eval()
    other = fold_batch_norm(model)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in other.modules()) == 0
    with torch.no_grad():
        torch.testing.assert_close(other(mels(name, 2)), model(mels(name, 2)), rtol=1e-3, atol=1e-5)
    with printing(capsys, f"{name}, inference: ms as it is, ms folded, ratio"):
        for clips in (1, 8):
            forms = {"as it is": inference(model, mels(name, clips)), "folded": inference(other, mels(name, clips))}
            print(f"  batch {clips}  {timings(forms, turns=25)}")


@pytest.mark.parametrize("name", ["mn04", "mn10"])
def test_memory_formats(name, capsys):
    """MN is built channels-last; the other is the same in torch's usual order."""
    model = backbone(name)
    usual = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    assert_same(usual, model, mels(name, 3))
    with printing(capsys, f"{name}: ms channels first, ms channels last (ours), ratio"):
        for what, run, clips in (("inference", inference, 1), ("training", training, 8)):
            forms = {"first": run(usual, mels(name, clips)), "last": run(model, mels(name, clips))}
            print(f"  {what:9} batch {clips}  {timings(forms)}")


@pytest.mark.parametrize("name", ["mn10", "dymn04", "ast_tiny", "ced_tiny"])
def test_half_precision(name, capsys):
    model, mel_BMF = backbone(name), mels(name, 8)

    def halved(run: Callable[[], object]) -> Callable[[], object]:
        return torch.autocast("cpu", torch.bfloat16)(run)

    with torch.no_grad():
        expected = model.eval()(mel_BMF)
        with torch.autocast("cpu", torch.bfloat16):
            difference = (model(mel_BMF).float() - expected).abs().max() / expected.abs().max()
    assert difference < 0.1
    with printing(capsys, f"{name}, batch 8: ms fp32, ms bf16, ratio; largest difference {difference:.4f} of a logit"):
        for what, run in (("inference", inference), ("training", training)):
            plain, other = run(model, mel_BMF), run(model, mel_BMF)
            print(f"  {what:9}  {timings({'fp32': plain, 'bf16': halved(other)}, turns=5)}")


@pytest.mark.parametrize("name", ["mn04", "ced_tiny"])
def test_compiled(name, capsys):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and no g++ is here")
    model = backbone(name)
    compiled = copy.deepcopy(model)
    compiled.compile(dynamic=False)
    assert_same(model, compiled, mels(name, 8))
    with printing(capsys, f"{name}, batch 8: ms as it is, ms compiled, ratio; once it is compiled"):
        for what, run in (("inference", inference), ("training", training)):
            forms = {"as it is": run(model, mels(name, 8)), "compiled": run(compiled, mels(name, 8))}
            print(f"  {what:9}  {timings(forms)}")


def test_peak_memory(capsys):
    """A process for each model: its peak memory, less its memory before the network was built."""
    with printing(capsys, f"most MB held, weights included, {FRAMES // 100} s a clip: inference of 1, training on 8"):
        for name in CATALOG:
            program = f"from tests.bench.test_models import print_peaks; print_peaks({name!r})"
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
            )
            assert done.returncode == 0, done.stderr[-1000:]
            one, eight = map(float, done.stdout.split())
            assert 0 < one < eight
            print(f"  {name:9} {one:8.0f} {eight:8.0f}")


def print_peaks(name: str) -> None:
    torch.set_num_threads(1)
    before = resident_mb("VmRSS")
    model, peaks = build_backbone(CATALOG[name].arch, bands=bands_of(name), frames=frames_of(name), num_classes=50), []
    for run, clips in ((inference, 1), (training, 8)):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        run(model, mels(name, clips))()
        peaks.append(resident_mb("VmHWM") - before)
    print(*peaks)


def resident_mb(what: str) -> float:
    """Resident memory of this process in MB as Linux counts it, now (VmRSS) or at its peak (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1000
