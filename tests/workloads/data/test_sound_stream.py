"""Sound block by block: files, pipes, raw samples; against the whole file at once."""

import io
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import torch

from tests.workloads.data.test_decode import RATE, WITHOUT_HEADER, encoded
from workloads.data import joined
from workloads.data.decode import BrokenClip, load_sound, resample
from workloads.data.live_sound import read_live
from workloads.data.resampler import Resampler
from workloads.data.sound_stream import Pcm, SoundStream, open_file, open_pcm, open_pipe, unbuffered

NOISE_TD = 0.1 * np.random.default_rng(0).standard_normal((30_001, 2)).astype(np.float32)
UNKNOWN = (0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF)  # bytes that programs declare when they write into a pipe


@contextmanager
def pipe(content: bytes) -> Iterator[int]:
    """The reading end of a pipe into which a thread writes."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield reading
        thread.join()
    finally:
        os.close(reading)


def declaring(size: int) -> bytes:
    """A WAV file whose header says that its sound has so many bytes."""
    wav = encoded(NOISE_TD[:, 0], "WAV", subtype="PCM_16")
    place = wav.index(b"data") + 4
    return wav[:place] + struct.pack("<I", size) + wav[place + 4 :]


def heard(stream: SoundStream) -> torch.Tensor:
    return torch.cat(list(stream))


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_blocks_of_a_file_are_its_samples(container, subtype):
    content = encoded(NOISE_TD, container, subtype=subtype)
    stream = open_file(io.BytesIO(content))
    blocks = list(stream)
    assert len(blocks) >= 18
    assert max(map(len, blocks)) <= 1600, "a tenth of a second at a time"
    whole = load_sound(io.BytesIO(content), rate=RATE)
    assert stream.rate == whole.own_rate == RATE
    torch.testing.assert_close(torch.cat(blocks), whole.x_T, rtol=0, atol=1e-6)
    assert stream.samples == len(whole.x_T)
    assert stream.notes == ()


def test_every_frame_of_an_mp3_is_heard_where_libsndfile_guesses_the_length():
    stream = open_file(io.BytesIO(WITHOUT_HEADER))
    assert len(heard(stream)) == pytest.approx(10 * RATE, abs=5000)


@pytest.mark.parametrize(("container", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")])
@pytest.mark.parametrize("rate", [RATE, 8_000])
def test_files_that_were_joined_are_heard_one_after_the_other(container, subtype, rate):
    """As `load_sound` hears them, which has all at once; the last two have the same serial number, if any."""
    tone_T = 0.3 * np.sin(np.arange(3 * rate) / 20).astype(np.float32)
    parts = [
        encoded(NOISE_TD, container, subtype=subtype),
        *[encoded(tone_T, container, subtype=subtype, rate=rate)] * 2,
    ]
    content = b"".join(parts)
    x_T = heard(open_file(io.BytesIO(content)))
    whole_T = load_sound(io.BytesIO(content), rate=RATE).x_T
    assert len(x_T) == len(whole_T) == 30_001 + 2 * 3 * RATE
    torch.testing.assert_close(x_T, whole_T, rtol=0, atol=1e-4)
    alone_T = load_sound(io.BytesIO(parts[1]), rate=RATE).x_T
    torch.testing.assert_close(x_T[30_001 : 30_001 + 3 * RATE], alone_T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("container", ["OGG", "FLAC"])
def test_of_joined_files_the_broken_one_is_named_once_the_others_were_heard(container):
    part = encoded(NOISE_TD[:, 0], container)
    stream = open_file(io.BytesIO(part + part[: len(part) // 2]))
    with pytest.raises(BrokenClip, match=r"part 2 of the files joined in it"):
        list(stream)
    assert stream.samples >= 30_001


@pytest.mark.parametrize(
    ("container", "other"),
    [("WAV", "FLAC"), ("OGG", "WAV"), ("FLAC", "OGG"), ("MP3", "WAV"), ("WAV", "WAV"), ("AIFF", "AIFF")],
)
def test_another_file_that_was_joined_is_told_once_what_is_before_it_was_heard(container, other):
    one = encoded(NOISE_TD[:, 0], container)
    stream = open_file(io.BytesIO(one + encoded(NOISE_TD[:, 0], other)))
    with pytest.raises(BrokenClip, match=f"another file was joined to it, at byte {len(one)}"):
        list(stream)
    assert stream.samples > 29_900  # an encoder of MPEG audio may drop some


def test_what_follows_a_part_that_was_cut_short_within_a_page_is_heard_and_the_cut_is_told():
    long, short = encoded(NOISE_TD[:, 0], "OGG"), encoded(NOISE_TD[:5_000, 0], "OGG")
    content = long[: len(long) * 3 // 4] + short + short
    assert [len(part) for part in joined.joined_parts(content)] == [len(long) * 3 // 4, len(short), len(short)]
    for cut, others in ((content, 2 * 5_000), (long[:-100], 0)):
        stream = open_file(io.BytesIO(cut))
        with pytest.raises(BrokenClip, match="cut short: a page of Ogg in it is not whole"):
            list(stream)
        assert 10_000 < stream.samples - others < len(NOISE_TD), "as far as it goes"
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x00"  # between whole pages: not heard, and nothing is missing
    assert len(heard(open_file(io.BytesIO(short + tag + short + tag)))) == 2 * 5_000


def test_flac_files_behind_an_id3_tag_are_heard_one_after_the_other():
    """Some programs write one; 200 bytes are written as 1, 72: seven bits each."""
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x48" + bytes(200)
    first, second = encoded(NOISE_TD, "FLAC"), encoded(NOISE_TD[:5_000], "FLAC")
    for content in (tag + first + second, tag + first + tag + second):
        assert len(heard(open_file(io.BytesIO(content)))) == len(NOISE_TD) + 5_000
        assert len(load_sound(io.BytesIO(content), rate=RATE).x_T) == len(NOISE_TD) + 5_000


def test_the_next_flac_file_is_looked_for_from_where_the_decoder_has_read_to(monkeypatch):
    """It reads some kilobytes beyond the end of its part: here 16 are allowed for, a megabyte otherwise."""
    noise_T = 0.3 * np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32)
    first, second = encoded(noise_T, "FLAC"), encoded(noise_T[:5_000], "FLAC")
    monkeypatch.setattr(joined, "READ_AHEAD", 2**14)
    searched, found = [], joined._next_flac
    monkeypatch.setattr(joined, "_next_flac", lambda file, start: searched.append(start) or found(file, start))
    assert len(heard(open_file(io.BytesIO(first + second)))) == len(noise_T) + 5_000
    assert 10 * 2**14 < len(first) - 2**14 <= searched[0] <= len(first)


def test_a_flac_file_that_follows_a_long_one_is_found_where_a_block_that_is_searched_ends(monkeypatch):
    first, second = encoded(NOISE_TD, "FLAC"), encoded(NOISE_TD[:5_000], "FLAC")
    for block in (len(first) - 3, len(first), 7, 8):
        monkeypatch.setattr(joined, "BLOCK", block)
        assert joined._next_flac(io.BytesIO(first + second), 1) == len(first)
        assert joined._next_flac(io.BytesIO(first), 1) is None


@pytest.mark.parametrize("content", [encoded(NOISE_TD, "WAV"), *map(declaring, UNKNOWN)])
def test_a_wav_file_on_a_pipe_is_heard_whatever_length_it_declares(content):
    with pipe(content) as descriptor:
        x_T = heard(open_pipe(descriptor))
    assert len(x_T) == len(NOISE_TD)
    expected_T, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    torch.testing.assert_close(x_T, torch.from_numpy(expected_T).mean(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "dtype", "scale", "shift"),
    [("s16le", "<i2", 2**15, 0), ("s16be", ">i2", 2**15, 0), ("s32le", "<i4", 2**31, 0), ("u8", "u1", 2**7, 2**7)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_raw_samples_have_full_scale_at_1(form, dtype, scale, shift, channels):
    values_TD = np.random.default_rng(1).integers(-scale, scale, (5_000, channels))
    with pipe((values_TD + shift).astype(dtype).tobytes()) as descriptor, unbuffered(descriptor) as file:
        x_T = heard(open_pcm(file, Pcm(form, 8_000, channels)))
    torch.testing.assert_close(x_T, torch.from_numpy((values_TD / scale).mean(1)).float(), rtol=1e-5, atol=1e-6)


def test_raw_floats_are_heard_as_they_are_and_their_peak_is_noted():
    stream = open_pcm(io.BytesIO((20 * NOISE_TD[:, 0]).astype("<f4").tobytes()), Pcm("f32le", RATE))
    torch.testing.assert_close(heard(stream), torch.from_numpy(20 * NOISE_TD[:, 0]), rtol=0, atol=0)
    assert stream.notes[0].startswith("goes beyond full scale (peak ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no sound at all", "cannot be decoded (Format not recognised.)"),
        (b"", "is empty"),
        (declaring(400_000), "cut short: 30001 of 200000 samples"),
        (declaring(0), "its header declares no samples"),
        (encoded(NOISE_TD[:0], "WAV"), "its header declares no samples"),
        (b"\0\0\0\x20ftypisom" + bytes(100), "its container (mp4) cannot be read block by block; convert it"),
    ],
)
def test_a_file_without_usable_sound_is_refused_when_it_is_opened(content, reason):
    with pytest.raises(BrokenClip) as caught:
        open_file(io.BytesIO(content))
    assert str(caught.value).startswith(reason)


def test_a_rate_that_only_a_damaged_header_declares_is_refused():
    wav = bytearray(encoded(NOISE_TD, "WAV"))
    wav[24:28] = struct.pack("<I", 1)
    with pytest.raises(BrokenClip, match="declares a sample rate of 1 Hz"):
        open_file(io.BytesIO(bytes(wav)))


def test_what_comes_before_a_sound_is_cut_short_is_heard():
    flac = encoded(NOISE_TD, "FLAC")
    blocks = iter(open_file(io.BytesIO(flac[: len(flac) // 2])))
    assert len(next(blocks)) == 1600
    with pytest.raises(BrokenClip, match=r"cannot be decoded further|cut short"):
        list(blocks)
    with pipe(declaring(400_000)) as descriptor:
        blocks = iter(open_pipe(descriptor))
        assert sum(len(next(blocks)) for _ in range(19)) == 30_001
        with pytest.raises(BrokenClip, match="cut short: 30001 of 200000 samples"):
            next(blocks)


@pytest.mark.parametrize("content", [b"", b"hello", encoded(NOISE_TD, "WAV")[:20]])
def test_a_pipe_without_a_header_is_refused(content):
    with pipe(content) as descriptor, pytest.raises(BrokenClip, match="raw samples need --pcm and --rate"):
        open_pipe(descriptor)


def test_raw_samples_that_are_none_are_refused():
    with pytest.raises(BrokenClip, match="begins as a file with a header does"):
        heard(open_pcm(io.BytesIO(encoded(NOISE_TD, "WAV")), Pcm("s16le", RATE)))
    with pytest.raises(BrokenClip, match="ends within a sample: 1 bytes of 2"):
        heard(open_pcm(io.BytesIO(bytes(2001)), Pcm("s16le", RATE)))
    nan = np.full(4, np.nan, "<f4").tobytes()
    with pytest.raises(BrokenClip, match=r"holds samples that are NaN, .* after 0.0 s"):
        heard(open_pcm(io.BytesIO(nan), Pcm("f32le", RATE)))


@pytest.mark.parametrize(("orig", "new"), [(44_100, 16_000), (16_000, 32_000), (8_000, 44_100), (16_000, 16_000)])
@pytest.mark.parametrize("size", [333, 4_410, 100_000])
def test_resampling_piece_by_piece_is_resampling_the_whole(orig, new, size):
    x_T = torch.randn(2 * orig + 77, generator=torch.Generator().manual_seed(0))
    resampler = Resampler(orig=orig, new=new)
    found = [resampler.push(piece_T, last=False) for piece_T in x_T.split(size)]
    found.append(resampler.push(x_T[:0], last=True))
    torch.testing.assert_close(torch.cat(found), resample(x_T, orig=orig, new=new), rtol=0, atol=1e-4)


def test_reading_ahead_gives_all_blocks_and_what_goes_wrong():
    def blocks() -> Iterator[torch.Tensor]:
        yield from torch.arange(5.0).split(1)
        raise BrokenClip("cut short")

    found = read_live(blocks(), stopped=lambda: False, most=2)
    assert [float(next(found)) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(BrokenClip, match="cut short"):
        next(found)


def test_reading_ahead_ends_when_it_is_stopped_although_no_block_comes():
    reading, writing = os.pipe()
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    with unbuffered(reading) as file:
        assert list(read_live(iter(open_pcm(file, Pcm("s16le", RATE))), stopped=stopped, most=2)) == []
    os.close(writing)
    os.close(reading)
