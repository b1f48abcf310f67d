"""The cost of a model without training it: parameters, multiply-adds and seconds per clip, bytes.

Does not depend on recipes or data sets: only on the model's settings, the length of its clips and the number of tags.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from timeit import Timer

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from workloads.config.recipe import Model
from workloads.models.backbone import Backbone
from workloads.models.families import empty_backbone
from workloads.models.front_end import build_front_end
from workloads.models.tagger import Tagger


@dataclass(frozen=True)
class Size:
    """The size of a model, as `model_size` computes it."""

    params: int
    macs: int  # multiply-adds of the network's forward over one clip, without the front end
    weight_bytes: int  # of its state dict: weights, and buffers such as batch norm's
    optimizer_bytes: int  # of Adam's state after a step: two moments and a counter for each tensor


def model_size(model: Model, *, num_classes: int, clip_seconds: float, clip_rate: int) -> Size:
    """Parameters, multiply-adds and bytes of `model` for clips of `clip_seconds` at `clip_rate` Hz.

    Multiply-adds are those of convolutions and matrix products, attention's included, as torch's counter counts them.
    Raises ValueError where the network cannot be built for such clips.
    """
    front_end = build_front_end(model.front_end.kind, clip_rate=clip_rate)
    bands, frames = front_end.bands, front_end.input_frames(model.front_end, clip_seconds)
    # Of its numbers nothing depends, so none is drawn: a network of 300 million weights would take seconds.
    backbone = empty_backbone(model.arch, bands=bands, frames=frames, num_classes=num_classes).to_empty(device="cpu")
    parameters = list(backbone.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return Size(
        params=sum(parameter.numel() for parameter in parameters),
        macs=_count_macs(backbone.eval(), bands=bands, frames=frames),
        weight_bytes=sum(tensor.nbytes for tensor in backbone.state_dict().values()),
        optimizer_bytes=sum(2 * parameter.nbytes + 4 for parameter in trained),  # the counter is one float32
    )


def macs_of_forward(tagger: Tagger, mel_BMF: Tensor) -> int:
    """Multiply-adds per clip of a real forward of the network over a batch, counted as in `model_size`."""
    # Without cuDNN, because the counter does not count its recurrent layers.
    counter, without_cudnn = FlopCounterMode(display=False), torch.backends.cudnn.flags(enabled=False)
    with counter, sdpa_kernel(SDPBackend.MATH), without_cudnn, torch.no_grad():
        tagger(mel_BMF)
    return counter.get_total_flops() // 2 // len(mel_BMF)


def seconds_per_clip(model: Model, *, num_classes: int, clip_seconds: float, clip_rate: int, repeats: int = 7) -> float:
    """Median seconds from the waveform of one clip to its logits, on one thread of this CPU, front end included."""
    tagger = _untrained_tagger(model, num_classes, clip_seconds, clip_rate)
    x_BT = torch.zeros(1, round(clip_seconds * clip_rate)).uniform_(-0.1, 0.1)
    return median_seconds(lambda: tagger.tag(x_BT), repeats=repeats)


def median_seconds(
    call: Callable[[], object], *, repeats: int = 7, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of a call without gradients, on one thread of this CPU, after one that warms up.

    With `clock` = time.process_time it is the time that this process gets of a CPU, also beside other work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return statistics.median(Timer(torch.no_grad()(call), timer=clock).repeat(1 + repeats, number=1)[1:])
    finally:
        torch.set_num_threads(threads)


def _untrained_tagger(model: Model, num_classes: int, clip_seconds: float, clip_rate: int) -> Tagger:
    with torch.random.fork_rng(devices=[]):  # drawing its weights must not advance the caller's random numbers
        tagger = Tagger(
            model,
            tags=tuple(map(str, range(num_classes))),
            labels="multi",  # does not change the network
            clip_seconds=clip_seconds,
            clip_rate=clip_rate,
        )
    return tagger.eval()


def _count_macs(backbone: Backbone, *, bands: int, frames: int) -> int:
    """Multiply-adds of one clip's forward, on tensors that have shapes but no data.

    Fake tensors, not torch's "meta" device, which does not support autocast; and attention by its plain formula,
    because the counter does not count the CPU's fused kernel and would omit half of an AST.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as fake_mode,
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        backbone(fake_mode.from_tensor(torch.zeros(1, bands, frames)))
    return counter.get_total_flops() // 2
