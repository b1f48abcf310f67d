"""How large a model is, told without training it: parameters, multiply-adds and seconds per clip, bytes on disk.

Knows no recipe and no data set: only the model's settings, how long its clips are and how many tags it tells apart.
"""

import statistics
from dataclasses import dataclass
from timeit import Timer

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from workloads.config.recipe import Model
from workloads.models.backbone import Backbone
from workloads.models.tagger import Tagger


@dataclass(frozen=True)
class Size:
    """What `count` found."""

    params: int
    macs: int  # multiply-adds of the network's forward over one clip; its front end is not in them
    weight_bytes: int  # of its state dict: weights, and buffers such as batch norm's
    optimizer_bytes: int  # of what Adam keeps once it has taken a step: two moments and a counter for each tensor


def count(model: Model, *, num_classes: int, clip_seconds: float, clip_rate: int) -> Size:
    """Parameters, multiply-adds and bytes of `model` for clips of `clip_seconds` at `clip_rate` Hz.

    Multiply-adds are those of convolutions and matrix products, attention's included, as torch's counter sees them.
    Raises ValueError where the network cannot be built for such clips.
    """
    tagger = _untrained(model, num_classes, clip_seconds, clip_rate)
    frames = model.front_end.frames or tagger.front_end.frames(clip_seconds)
    parameters = list(tagger.parameters())
    return Size(
        params=tagger.num_parameters,
        macs=_macs(tagger.backbone, bands=tagger.front_end.bands, frames=frames),
        weight_bytes=sum(tensor.nbytes for tensor in tagger.state_dict().values()),
        optimizer_bytes=sum(2 * parameter.nbytes + 4 for parameter in parameters),  # the counter is one float32
    )


def macs_of_forward(tagger: Tagger, mel_BMF: Tensor) -> int:
    """Multiply-adds of a real forward of the network, as `count` counts them, for each clip of a batch."""
    counter, countable = FlopCounterMode(display=False), torch.backends.cudnn.flags(enabled=False)
    with counter, sdpa_kernel(SDPBackend.MATH), countable, torch.no_grad():  # it does not know cuDNN's recurrent layers
        tagger(mel_BMF)
    return counter.get_total_flops() // 2 // len(mel_BMF)


def seconds_per_clip(model: Model, *, num_classes: int, clip_seconds: float, clip_rate: int, repeats: int = 7) -> float:
    """Median seconds from the waveform of one clip to its logits, on one thread of this CPU, front end included."""
    tagger, threads = _untrained(model, num_classes, clip_seconds, clip_rate), torch.get_num_threads()
    x_BT = torch.zeros(1, round(clip_seconds * clip_rate)).uniform_(-0.1, 0.1)
    torch.set_num_threads(1)
    try:
        timer = Timer("tag(x_BT)", globals={"tag": torch.no_grad()(tagger.tag), "x_BT": x_BT})
        return statistics.median(timer.repeat(1 + repeats, number=1)[1:])  # the first one warms up
    finally:
        torch.set_num_threads(threads)


def _untrained(model: Model, num_classes: int, clip_seconds: float, clip_rate: int) -> Tagger:
    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and nobody else's draws must move
        tagger = Tagger(
            model,
            tags=tuple(map(str, range(num_classes))),
            labels="multi",  # the same network either way
            clip_seconds=clip_seconds,
            clip_rate=clip_rate,
        )
    return tagger.eval()


def _macs(backbone: Backbone, *, bands: int, frames: int) -> int:
    """Of one clip's forward, on tensors that have shapes and no numbers.

    Fake ones, not torch's "meta" device, which knows no autocast; and attention by its plain formula, because the
    counter does not know the CPU's fused kernel and would leave half of an AST out.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as shapes,
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        backbone(shapes.from_tensor(torch.zeros(1, bands, frames)))
    return counter.get_total_flops() // 2
