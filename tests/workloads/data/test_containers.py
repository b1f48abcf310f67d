"""MP4, WebM and AAC files: heard as they were encoded where the package av is installed, else named with the remedy."""

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from workloads.config.data import Data
from workloads.data.cache import ClipCache
from workloads.data.clips import Clip
from workloads.data.decode import BrokenClip, NotReadHere, decode
from workloads.runtime.opener import LocalFiles

av = pytest.importorskip("av", reason="needs the package av")
RATE, SECONDS = 48_000, 2.0
CONTAINERS = {"mp4": "aac", "webm": "libopus", "matroska": "flac", "adts": "aac", "asf": "wmav2"}


def tone(hertz: float) -> np.ndarray:
    return 0.5 * np.sin(2 * math.pi * hertz * np.arange(round(SECONDS * RATE)) / RATE)


def encode(container: str, codec: str, x_TD: np.ndarray, *, rate: int = RATE) -> bytes:
    """A file of these channels, written by FFmpeg."""
    out = io.BytesIO()
    layout = "mono" if x_TD.shape[1] == 1 else "stereo"
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.bit_rate = 128_000
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(x_TD.T.astype(np.float32).copy(), format="fltp", layout=layout)
        frame.rate = rate
        fifo = av.AudioFifo()
        for block in resampler.resample(frame):
            fifo.write(block)
        size = stream.codec_context.frame_size or 1024
        while block := fifo.read(size) or fifo.read():
            file.mux(stream.encode(block))
        file.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_encoded_sound(container: str) -> None:
    x_T, rate, repaired = decode(encode(container, CONTAINERS[container], tone(440)[:, None]))
    assert (rate, repaired, x_T.dtype) == (RATE, False, torch.float32)
    assert len(x_T) == pytest.approx(RATE * SECONDS, abs=4096), "encoders pad by a frame or two"
    inside = x_T[RATE // 2 : RATE].double().numpy()
    time = np.arange(len(inside)) / RATE
    waves = np.stack([np.sin(2 * math.pi * 440 * time), np.cos(2 * math.pi * 440 * time)], axis=1)
    weights, residual, *_ = np.linalg.lstsq(waves, inside, rcond=None)
    assert np.hypot(*weights) == pytest.approx(0.5, abs=0.02)
    assert residual[0] / len(inside) < 1e-3, "nothing but the tone"


def test_channels_are_averaged() -> None:
    stereo = np.stack([tone(440), np.zeros(round(SECONDS * RATE))], axis=1)
    x_T, _, _ = decode(encode("matroska", "flac", stereo))
    assert float(x_T[RATE // 2 : RATE].abs().max()) == pytest.approx(0.25, abs=0.001)


def test_aac_that_declares_no_length_is_heard_whole() -> None:
    """FFmpeg guesses its duration from the bit rate of the first frames, which is that of silence here."""
    noise = np.random.default_rng(0).normal(0, 0.2, 5 * RATE)
    x_T, _, _ = decode(encode("adts", "aac", np.concatenate((np.zeros(5 * RATE), noise))[:, None]))
    assert len(x_T) == pytest.approx(10 * RATE, abs=4096)


@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_joined_files_of_other_rates_and_channels_are_heard_at_the_first_ones_rate(rate: int) -> None:
    second = np.stack([tone(440)[: 2 * rate], tone(440)[: 2 * rate]], axis=1)
    parts = encode("adts", "aac", tone(440)[:, None]), encode("adts", "aac", second, rate=rate)
    x_T, own_rate, _ = decode(b"".join(parts))
    assert own_rate == RATE
    seconds = SECONDS + len(second) / rate
    assert len(x_T) == pytest.approx(seconds * RATE, abs=8192)
    spectrum = x_T[-RATE:].numpy()
    pitch = np.abs(np.fft.rfft(spectrum * np.hanning(len(spectrum)))).argmax()
    assert pitch == pytest.approx(440 * rate / RATE, abs=2), "the second part is written at its own rate"


def test_a_truncated_file_and_one_without_sound_are_broken() -> None:
    whole = encode("matroska", "flac", tone(440)[:, None])
    x_T = decode(whole)[0]
    for part in (whole[: len(whole) // 2], encode("mp4", "aac", tone(440)[:, None])[:4000], b"\0\0\0\x18ftypM4A " * 9):
        with pytest.raises(BrokenClip):
            decode(part)
    assert len(x_T) == round(SECONDS * RATE)
    video = io.BytesIO()
    with av.open(video, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        file.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        file.mux(stream.encode(None))
    with pytest.raises(BrokenClip, match="holds no sound"):
        decode(video.getvalue())


@pytest.mark.parametrize("content", [b"#EXTM3U\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"])
def test_a_playlist_opens_no_other_file(content: bytes) -> None:
    with pytest.raises(BrokenClip, match="cannot be decoded"):
        decode(content)


def test_without_av_the_remedy_is_named_and_an_installation_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.m4a").write_bytes(encode("mp4", "aac", tone(440)[:, None]))
    data = Data(format="manifest", root=str(tmp_path), manifest="unused.csv")
    clip = Clip("a", "a.m4a", ("tag",), 1, "a")
    cache = ClipCache(tmp_path / "cache", rate=16_000, limit_gb=1.0)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "av", None)
        (broken,) = cache.prepare([clip], data, LocalFiles())
        with pytest.raises(NotReadHere):
            decode((tmp_path / "a.m4a").read_bytes())
    assert "pip install 'antiphon[av]'" in broken.reason
    assert cache.prepare([clip], data, LocalFiles()) == []
    assert len(cache.load("a")) == pytest.approx(16_000 * SECONDS, abs=1500)
