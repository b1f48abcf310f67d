"""Taggers that hear a sound piece by piece, against the same taggers on whole sounds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from workloads.config.architectures import MN, Arch, FrameMN, OnDevice, ViT
from workloads.config.recipe import FrontEnd, Model
from workloads.data.sound_stream import open_file
from workloads.evaluate.detect import smooth
from workloads.evaluate.median_stream import MedianStream
from workloads.evaluate.predict import BadNumbers
from workloads.evaluate.sounds import hear_sound, likeliest
from workloads.evaluate.stream import CarriedStream, Steps, TaggerStream, WindowStream, open_stream, why_not_carried
from workloads.models.tagger import Tagger, build_tagger

RATE = 16_000
TAGS = ("dog", "rain", "car")
LSTM, CRNN = (OnDevice(family="ondevice", variant=variant) for variant in ("lstm_p", "crnn"))
FRAME_MN = FrameMN(family="frame_mn", width=0.1)
VIT = ViT(family="vit", dim=16, depth=1, heads=2, pool="avg")
FRAME_VIT = replace(VIT, frame_pool="max")


def tagger_of(arch: Arch, *, labels: Any = "multi", front_end: FrontEnd | None = None, seconds: float = 1.0) -> Tagger:
    """Random weights of a size with which probabilities differ from step to step."""
    front_end = front_end or FrontEnd(kind="logmel40" if isinstance(arch, OnDevice) else "logmel64")
    about: dict[str, Any] = {"tags": TAGS, "labels": labels, "clip_seconds": seconds, "clip_rate": RATE}
    tagger = build_tagger(Model(arch=arch, front_end=front_end), name="x", seed=0, **about).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tagger.backbone.named_parameters():
            if parameter.ndim > 1 and not isinstance(arch, OnDevice):
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
            if name == "head.weight":
                parameter.mul_(20)
    return tagger


def sound(seconds: float, seed: int = 0) -> Tensor:
    """Noise whose loudness changes."""
    x_T = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    return 0.1 * x_T * (1 + torch.linspace(0, 9 * seconds, len(x_T)).sin())


def frames_of(tagger: Tagger, x_T: Tensor, long_clips: str) -> Tensor:
    """logits_FC of a sound as `tag` hears it."""
    frames_FC = hear_sound(tagger, x_T, long_clips, frames=True).frames_FC
    assert frames_FC is not None
    return frames_FC


def heard(stream: TaggerStream, x_T: Tensor, *, block: int = 1_600) -> Steps:
    found = [steps for block_T in x_T.split(block) for steps in stream.push(block_T)]
    found.append(stream.finish())
    return Steps(
        *(np.concatenate([getattr(steps, name) for steps in found]) for name in ("begins_P", "ends_P", "p_PC"))
    )


KINDS = [(LSTM, CarriedStream), (CRNN, CarriedStream), (FRAME_MN, CarriedStream)]
KINDS += [(VIT, WindowStream), (FRAME_MN, WindowStream), (FRAME_VIT, WindowStream)]
every_kind = pytest.mark.parametrize(("arch", "kind"), KINDS)


@every_kind
@pytest.mark.parametrize("seconds", [0.31, 1.0, 4.27])
def test_steps_follow_each_other_from_the_beginning_to_the_end_whatever_the_blocks(arch, kind, seconds):
    tagger, x_T = tagger_of(arch), sound(seconds)
    steps = heard(kind(tagger), x_T)
    assert (steps.begins_P[0], steps.ends_P[-1]) == (0, len(x_T) / RATE)
    assert (steps.begins_P[1:] == steps.ends_P[:-1]).all()
    assert (steps.ends_P > steps.begins_P).all()
    other = heard(kind(tagger), x_T, block=777)
    assert all(np.array_equal(getattr(steps, name), getattr(other, name)) for name in ("begins_P", "ends_P", "p_PC"))


@every_kind
def test_what_has_come_is_known_after_the_latency_and_not_much_earlier(arch, kind):
    stream, x_T, known, lags = kind(tagger_of(arch), hop=0.24), sound(6.0), 0.0, []
    for block_T in x_T.split(320):
        for steps in stream.push(block_T):
            known = steps.ends_P[-1] if len(steps) else known
        lags.append(stream.seconds - known)
    after_first = [lag for number, lag in enumerate(lags) if number * 0.02 > 1.0 + stream.latency]
    assert max(after_first) <= stream.latency + 0.04 + 1e-6, "a step, too, lasts"
    assert max(after_first) >= stream.latency - 0.1


@pytest.mark.parametrize("labels", ["multi", "single"])
@pytest.mark.parametrize("arch", [LSTM, CRNN])
def test_recurrent_networks_say_what_they_say_of_the_whole_file(arch, labels):
    tagger, x_T = tagger_of(arch, labels=labels), sound(3.3)
    steps = heard(CarriedStream(tagger), x_T)
    with torch.no_grad():
        sequence_PD = tagger.outputs(tagger.front_end(x_T.unsqueeze(0))).sequence_BPD[0]
        logits_PC = tagger.backbone.head(tagger.backbone.dense(sequence_PD) if arch is CRNN else sequence_PD)
        last_C = tagger.tag(x_T.unsqueeze(0))[0]
    p_PC = (logits_PC.softmax(1) if labels == "single" else logits_PC.sigmoid()).numpy()
    torch.testing.assert_close(logits_PC[-1], last_C)
    assert p_PC.std(0).max() > 0.01
    expected_PC = median_filter(p_PC, size=(17, 1), mode="nearest")  # 0.34 s: 0.36 s lie between 17 and 19 steps
    assert len(steps) == len(expected_PC)
    np.testing.assert_allclose(steps.p_PC, expected_PC, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.4, 1.0])
def test_windows_give_a_sound_of_one_clip_the_frames_that_tag_prints(seconds):
    tagger, x_T = tagger_of(FRAME_MN), sound(seconds)
    expected_FC = smooth(frames_of(tagger, x_T, "windows"), 0.36)
    assert expected_FC.std(0).max() > 0.01
    steps = heard(WindowStream(tagger), x_T)
    np.testing.assert_allclose(steps.p_PC, expected_FC, rtol=0, atol=1e-3)  # joined windows are fp16


@pytest.mark.parametrize("seconds", [0.4, 0.99])
def test_a_network_with_gates_hears_a_sound_shorter_than_a_clip_as_a_whole(seconds):
    tagger, x_T = tagger_of(FRAME_MN), sound(seconds)
    steps = heard(CarriedStream(tagger), x_T)
    with torch.no_grad():
        frames_PC = tagger.outputs(tagger.front_end(x_T.unsqueeze(0))).frames_BPC[0]
    expected_PC = median_filter(frames_PC.sigmoid().numpy(), size=(9, 1), mode="nearest")
    assert expected_PC.std(0).max() > 0.01
    np.testing.assert_allclose(steps.p_PC, expected_PC, rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", ["multi", "single"])
def test_windows_say_of_each_piece_what_the_tagger_says_of_the_clip_that_ends_with_it(labels):
    tagger, x_T = tagger_of(VIT, labels=labels), sound(2.4)
    steps = heard(WindowStream(tagger, hop=0.5), x_T)
    assert steps.ends_P.tolist() == [1.0, 1.5, 2.0, 2.4]
    for end, p_C in zip(steps.ends_P, steps.p_PC, strict=True):
        window_T = x_T[round((end - 1) * RATE) : round(end * RATE)]
        expected = dict(likeliest(tagger, hear_sound(tagger, window_T, "start").logits_C, top=3))
        assert dict(zip(TAGS, p_C.tolist(), strict=True)) == pytest.approx(expected, abs=1e-6)
    short = heard(WindowStream(tagger), x_T[:5_000])
    expected = dict(likeliest(tagger, hear_sound(tagger, x_T[:5_000], "start").logits_C, top=3))
    assert dict(zip(TAGS, short.p_PC[0].tolist(), strict=True)) == pytest.approx(expected, abs=1e-6)


def test_frames_of_windows_are_those_that_have_sound_on_both_sides():
    """Of a window of 25 frames that ends at k x 0.4 s those 10 to 20 from its end count, before the median filter."""
    tagger, x_T = tagger_of(FRAME_VIT), sound(3.0)
    stream = WindowStream(tagger, hop=0.4)
    stream._median = MedianStream(0.0, 0.04)
    steps = heard(stream, x_T)
    assert len(steps) == 75

    def window(begin: float) -> np.ndarray:
        start = round(begin * RATE)
        return frames_of(tagger, x_T[start : start + RATE], "start").float().sigmoid().numpy()

    np.testing.assert_allclose(steps.p_PC[:15], window(0.0)[:15], rtol=0, atol=1e-3)
    np.testing.assert_allclose(steps.p_PC[15:25], window(0.4)[5:15], rtol=0, atol=1e-3)
    np.testing.assert_allclose(steps.p_PC[55:65], window(2.0)[5:15], rtol=0, atol=1e-3)
    np.testing.assert_allclose(steps.p_PC[65:], window(2.0)[15:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("step", [0.02, 0.04, 0.32])
@pytest.mark.parametrize("sizes", [[40], [1, 2, 0, 20, 17], [0, 40]])
def test_the_median_filter_of_a_stream_is_that_of_the_whole(step, sizes):
    p_PC = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    stream, parts = MedianStream(0.36, step), np.split(p_PC, np.cumsum(sizes)[:-1])
    found = [stream.push(part, last=number == len(parts) - 1) for number, part in enumerate(parts)]
    size = 2 * stream.half + 1
    assert size == {0.02: 17, 0.04: 9, 0.32: 1}[step]
    np.testing.assert_array_equal(np.concatenate(found), median_filter(p_PC, size=(size, 1), mode="nearest"))


@pytest.mark.parametrize("hop", [0.5, 0.55, 0.75, 0.9, 0.99])
def test_windows_that_begin_between_frames_lose_no_frame(hop):
    steps = heard(WindowStream(tagger_of(FRAME_VIT), hop=hop), sound(20.0))
    assert len(steps.p_PC) == 500
    assert float(steps.ends_P[-1]) == pytest.approx(20.0)


def test_state_is_carried_where_a_tagger_can_and_else_it_hears_windows():
    for arch, kind in [(LSTM, CarriedStream), (FRAME_MN, CarriedStream), (VIT, WindowStream)]:
        assert type(open_stream(tagger_of(arch))) is kind
    assert type(open_stream(tagger_of(LSTM), carry=False)) is WindowStream
    assert open_stream(tagger_of(LSTM, seconds=0.1)).hop == 0.1
    for hop in (0.01, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"hop = {hop:g}: must be 0.02 to 1 s, the length of its clips"):
            open_stream(tagger_of(LSTM), hop=hop)


@pytest.mark.parametrize(
    ("tagger", "reason"),
    [
        (tagger_of(VIT), "vit hears a clip as a whole and has no state to carry"),
        (tagger_of(OnDevice(family="ondevice", variant="att_rnn")), "att_rnn hears a clip as a whole"),
        (tagger_of(MN(family="mn", width=0.1)), "mn hears a clip as a whole"),
        (tagger_of(FRAME_MN, labels="single"), "frame_mn with labels 'single' has probabilities of clips only"),
        (tagger_of(LSTM, front_end=FrontEnd(kind="ced64")), "its front end, ced64, depends on the whole clip"),
        (tagger_of(LSTM, front_end=FrontEnd(kind="logmel40", frames=60)), "its clips are padded or cut to 60 frames"),
    ],
)
def test_why_a_tagger_cannot_carry_its_state(tagger, reason):
    assert why_not_carried(tagger).startswith(reason)


@every_kind
def test_too_short_a_sound_and_broken_weights_are_errors(arch, kind):
    stream = kind(tagger_of(arch))
    list(stream.push(torch.zeros(100)))
    with pytest.raises(ValueError, match=r"holds 0\.006 s of sound; a tagger needs 0\.05 s or more"):
        stream.finish()
    broken = tagger_of(arch)
    with torch.no_grad():
        broken.backbone.head.weight.fill_(torch.nan)
    with pytest.raises(BadNumbers, match="its weights are damaged"):
        heard(kind(broken), sound(2.0))


@every_kind
def test_after_a_logit_that_is_not_finite_no_step_comes_at_a_wrong_time(arch, kind):
    """NaN in the third second; what is heard later has no steps, whether the network could hear on or not."""
    stream, x_T = kind(tagger_of(arch)), sound(6.0)
    x_T[2 * RATE + 100] = torch.nan
    given: list[Steps] = []

    def push_all() -> None:
        for block_T in x_T[: 4 * RATE].split(1_600):
            given.extend(steps for steps in stream.push(block_T) if len(steps))

    with pytest.raises(BadNumbers, match="are not finite"):
        push_all()
    assert 1.0 <= max(steps.ends_P[-1] for steps in given) <= 2.0
    for _ in range(2):
        with pytest.raises(BadNumbers, match="are not finite"):
            list(stream.push(x_T[4 * RATE :]))
    with pytest.raises(BadNumbers, match="are not finite"):
        stream.finish()


def peak_mb(stream: TaggerStream, file: Path) -> float:
    """The largest resident memory while a stream hears a file, in MB, as Linux counts it."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    with open(file, "rb") as opened:
        for x_T in open_file(opened):
            for _ in stream.push(x_T):
                pass
        stream.finish()
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


@pytest.mark.parametrize(("arch", "kind"), [(CRNN, CarriedStream), (VIT, WindowStream)])
def test_memory_does_not_grow_with_the_length_of_a_file(arch, kind, tmp_path):
    """Five minutes of samples take 19 MB as floats, and 9.6 MB in the file."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is measured as Linux counts it")
    noise_T = (0.1 * sound(10.0)).numpy()
    for name, times in (("short.wav", 1), ("long.wav", 30)):
        with soundfile.SoundFile(tmp_path / name, "w", RATE, 1) as file:
            for _ in range(times):
                file.write(noise_T)
    tagger = tagger_of(arch)
    peak_mb(kind(tagger), tmp_path / "short.wav")  # what torch keeps for itself
    short = peak_mb(kind(tagger), tmp_path / "short.wav")
    long = peak_mb(kind(tagger), tmp_path / "long.wav")
    assert (tmp_path / "long.wav").stat().st_size > 9.5e6
    assert long - short < 4
