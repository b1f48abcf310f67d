"""Networks and front ends piece by piece, against one pass over the whole sound."""

import pytest
import torch
from torch import Tensor, nn

from workloads.config.architectures import MN, Arch, FrameMN, OnDevice, ViT
from workloads.models.backbone import Backbone
from workloads.models.families import build_backbone
from workloads.models.front_end import KINDS, build_front_end
from workloads.models.front_end_stream import FrontEndStream

FRAMES = 437
PIECES = [[437], [100, 337], [3, 1, 20, 4, 50, 359], [0, 64, 0, 373, 0]]


def network(arch: Arch, *, bands: int = 40, constant_gates: bool = False) -> Backbone:
    """Drawn weights of a size with which logits differ from step to step; gates may be the same for every sound."""
    torch.manual_seed(0)
    model = build_backbone(arch, bands=bands, frames=100, num_classes=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and arch.family != "ondevice":
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
            if constant_gates and "fc2" in name:
                parameter.fill_(0.0 if parameter.ndim > 1 else 3.0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model


def streamed(model: Backbone, mel_BMF: Tensor, pieces: list[int]) -> Tensor:
    stream = model.stream(clip_frames=100)
    assert stream is not None
    parts = mel_BMF.split(pieces, dim=2)
    with torch.no_grad():
        found = [stream.push(part, last=number == len(parts) - 1) for number, part in enumerate(parts)]
    return torch.cat([logits_BPC for logits_BPC in found if logits_BPC.shape[1]], dim=1)


def log_mel(*, bands: int = 40) -> Tensor:
    return torch.randn(2, bands, FRAMES, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("variant", ["lstm_p", "crnn"])
def test_a_recurrent_network_says_at_each_step_what_it_says_of_the_sound_up_to_it(variant, pieces):
    model, mel_BMF = network(OnDevice(family="ondevice", variant=variant)), log_mel()
    logits_BPC = streamed(model, mel_BMF, pieces)
    steps = FRAMES if variant == "lstm_p" else FRAMES - 6
    assert logits_BPC.shape == (2, steps, 3)
    with torch.no_grad():
        for end in (7, 8, 110, 300, FRAMES):
            expected_BC = model(mel_BMF[..., :end])
            torch.testing.assert_close(logits_BPC[:, end - 1 - (FRAMES - steps)], expected_BC, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize(
    ("arch", "constant_gates"),
    [
        (FrameMN(family="frame_mn", width=0.2), True),
        (MN(family="mn", width=0.2, head="fully_convolutional", se_axes=()), False),
        (MN(family="mn", width=0.2, head="fully_convolutional", strides=(1, 2, 1, 2)), True),
    ],
)
def test_convolutions_give_the_frame_logits_of_the_whole_sound(arch, constant_gates, pieces):
    model, mel_BMF = network(arch, constant_gates=constant_gates), log_mel()
    with torch.no_grad():
        whole_BPC = model.outputs(mel_BMF).frames_BPC
    assert whole_BPC is not None
    assert whole_BPC.std(1).min() > 0.01, "these weights say something"
    torch.testing.assert_close(streamed(model, mel_BMF, pieces), whole_BPC, rtol=1e-4, atol=1e-4)


def test_gates_hear_the_first_clip_as_a_whole_and_later_the_last_clip():
    """In one piece they are the network's; of a second clip only the last hundred frames count."""
    model, mel_BMF = network(FrameMN(family="frame_mn", width=0.2)), log_mel()
    with torch.no_grad():
        whole_BPC = model.outputs(mel_BMF[..., :100]).frames_BPC
    torch.testing.assert_close(streamed(model, mel_BMF[..., :100], [100]), whole_BPC, rtol=1e-4, atol=1e-4)

    loud_BMF = mel_BMF.clone()
    loud_BMF[..., :100] += 3
    pieces = [100, 20, *[10] * 31, 7]
    one, other = streamed(model, mel_BMF, pieces), streamed(model, loud_BMF, pieces)
    assert (one[:, :25] - other[:, :25]).abs().mean() > 0.01
    # a hundred frames, the reach of the kernels (163) and, gate by gate, a clip more for each of the eight in a row
    # would be forgotten; what is left of the difference at the end is what eight means of means keep
    assert (one[:, -5:] - other[:, -5:]).abs().mean() < 0.1 * (one[:, :25] - other[:, :25]).abs().mean()


@pytest.mark.parametrize(
    "arch", [FrameMN(family="frame_mn", width=0.2), MN(family="mn", width=0.2, head="fully_convolutional", se_axes=())]
)
def test_a_step_is_known_once_its_look_ahead_has_come_and_not_before(arch):
    model, mel_BMF = network(arch, constant_gates=True), log_mel()
    stream = model.stream(clip_frames=100)
    assert stream is not None
    steps = model.outputs(mel_BMF).sequence_BPD.shape[1]
    first, step = model.time_steps(FRAMES, steps)
    given = 0
    for frame in range(FRAMES):
        with torch.no_grad():
            given += stream.push(mel_BMF[..., frame : frame + 1], last=False).shape[1]
        # look_ahead is a whole number of frames, and the bounds of steps lie between two
        least, most = ((frame + 1 - stream.look_ahead + late - first) // step for late in (0, 1))
        assert max(0, least) <= given <= max(0, most)
    assert given > 0


@pytest.mark.parametrize(
    "arch",
    [
        OnDevice(family="ondevice", variant="att_rnn"),
        OnDevice(family="ondevice", variant="tc_resnet"),
        MN(family="mn", width=0.2),
        MN(family="mn", width=0.2, head="fully_convolutional", se_axes=("t",)),
        ViT(family="vit", dim=16, depth=1, heads=2, frame_pool="max"),
    ],
)
def test_networks_that_need_a_clip_as_a_whole_have_no_stream(arch):
    assert network(arch).stream(clip_frames=100) is None


@pytest.mark.parametrize("size", [123, 1000, 9000])
@pytest.mark.parametrize(("kind", "rate"), [(kind, rate) for kind in KINDS for rate in (16_000, 22_050, 44_100)])
def test_a_front_end_gives_the_frames_of_the_whole_sound(kind, rate, size):
    front_end = build_front_end(kind, clip_rate=rate)
    if front_end.reach is None:
        assert kind in ("ced64", "waveform16k", "waveform16k_norm")
        return
    x_T = 0.1 * torch.randn(round(1.37 * rate), generator=torch.Generator().manual_seed(0))
    stream, parts = FrontEndStream(front_end), x_T.split(size)
    found = [stream.push(part_T, last=number == len(parts) - 1) for number, part_T in enumerate(parts)]
    whole_BMF = front_end(x_T.unsqueeze(0))
    streamed_BMF = torch.cat(found, dim=2)
    assert streamed_BMF.shape == whole_BMF.shape
    # powers near 0, whose logarithm is large, differ most: by the rounding of their sums
    torch.testing.assert_close(streamed_BMF.exp(), whole_BMF.exp(), rtol=1e-3, atol=1e-6)
    assert (streamed_BMF - whole_BMF).abs().mean() < 1e-5


def test_a_front_end_ends_at_any_piece():
    front_end = build_front_end("logmel40", clip_rate=16_000)
    x_T = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    stream = FrontEndStream(front_end)
    found = [stream.push(x_T, last=False), stream.push(x_T[:0], last=True)]
    assert found[1].shape[2] > 0, "the last frames waited for what comes after"
    torch.testing.assert_close(torch.cat(found, dim=2), front_end(x_T.unsqueeze(0)), rtol=0, atol=1e-4)
