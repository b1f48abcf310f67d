"""What is heard of files as people have them: MPEG of all kinds, unfinished headers, samples beyond full scale."""

import io
import struct
import wave

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from workloads.data import decode
from workloads.data.decode import BrokenClip, TooLong, load_sound, resample

RATE = 16_000


def sound_of(content: bytes, *, rate: int = RATE) -> decode.Sound:
    return load_sound(io.BytesIO(content), rate=rate)


def encoded(x_T: np.ndarray, container: str, *, rate: int = RATE, **options: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, x_T, rate, format=container, **options)
    return file.getvalue()


def tone_then_noise(seconds: float) -> np.ndarray:
    """Half a tone, half noise: a variable bit rate spends few bits on the first and many on the second."""
    time_T = np.arange(round(seconds * RATE)) / RATE
    noise_T = 0.1 * np.random.default_rng(0).standard_normal(len(time_T))
    return np.where(time_T < seconds / 2, 0.3 * np.sin(2 * np.pi * 300 * time_T), noise_T).astype(np.float32)


SAMPLES = 10 * RATE
VARIABLE = encoded(tone_then_noise(10), "MP3", bitrate_mode="VARIABLE", compression_level=0.5)
HEADER = VARIABLE.index(VARIABLE[:2], 4)  # bytes of the first frame, which holds the Xing header
WITHOUT_HEADER = VARIABLE[HEADER:]


def test_the_files_are_what_the_tests_below_need() -> None:
    assert b"Xing" in VARIABLE[:HEADER]
    with soundfile.SoundFile(io.BytesIO(WITHOUT_HEADER)) as sound:
        assert sound.frames < 0.3 * SAMPLES, "libsndfile's estimate"


@pytest.mark.parametrize(
    ("content", "samples"),
    [
        pytest.param(VARIABLE, SAMPLES, id="with its header"),
        pytest.param(WITHOUT_HEADER, SAMPLES, id="without"),
        pytest.param(VARIABLE + VARIABLE, 2 * SAMPLES, id="two files joined"),
        pytest.param(VARIABLE + WITHOUT_HEADER, 2 * SAMPLES, id="joined with one without header"),
        pytest.param(bytes(1152) + VARIABLE, SAMPLES, id="zeros first"),
        pytest.param(b"ID3\3\0\0\0\0\1\0" + bytes(128 + 2048) + VARIABLE, SAMPLES, id="a tag longer than it says"),
    ],
)
def test_every_frame_of_an_mp3_is_heard(content: bytes, samples: int) -> None:
    assert len(sound_of(content).x_T) == pytest.approx(samples, abs=5000)


def test_an_excerpt_of_an_mp3_is_heard_from_its_first_whole_frame() -> None:
    """The second half of the bytes is the end of the noise, whose frames are larger."""
    x_T = sound_of(VARIABLE[len(VARIABLE) // 2 :]).x_T
    whole_T = sound_of(VARIABLE).x_T
    assert 2 * RATE < len(x_T) < 5 * RATE
    torch.testing.assert_close(x_T[2400:].std(), whole_T[-len(x_T) + 2400 :].std(), rtol=0.02, atol=0)


def test_mp3s_are_the_samples_that_libsndfile_decodes() -> None:
    expected, _ = soundfile.read(io.BytesIO(VARIABLE), dtype="float32")
    np.testing.assert_allclose(sound_of(VARIABLE).x_T.numpy(), expected, atol=1e-4)


def with_bytes(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


WAV = encoded(tone_then_noise(2), "WAV", subtype="PCM_16")


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF])
def test_a_wav_whose_header_was_never_finished_is_heard_to_its_end_and_counted(size: int) -> None:
    sound = sound_of(with_bytes(WAV, 40, struct.pack("<I", size)))
    assert torch.equal(sound.x_T, sound_of(WAV).x_T)
    assert sound.repaired
    assert sound.notes == ("its header lacks the size of the sound: heard to the end of the file",)
    assert not sound_of(WAV).notes


def test_a_file_without_a_byte_is_called_empty() -> None:
    with pytest.raises(BrokenClip, match=r"^is empty$"):
        sound_of(b"")


def test_an_empty_wav_with_a_comment_after_its_sound_stays_empty() -> None:
    empty = with_bytes(WAV[:44], 40, struct.pack("<I", 0)) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(BrokenClip, match="holds no samples"):
        sound_of(empty)


def test_a_flac_of_unknown_length_is_heard_whole() -> None:
    flac = encoded(tone_then_noise(2), "FLAC", subtype="PCM_16")
    unknown = with_bytes(flac, 21, bytes([flac[21] & 0xF0, 0, 0, 0, 0]))  # 36 bits of STREAMINFO
    assert torch.equal(sound_of(unknown).x_T, sound_of(flac).x_T)


@pytest.mark.parametrize("rate", [1, 99, 10_000_000])
def test_a_rate_that_no_recorder_has_is_a_damaged_header(rate: int) -> None:
    with pytest.raises(BrokenClip, match=f"declares a sample rate of {rate} Hz"):
        sound_of(with_bytes(WAV, 24, struct.pack("<I", rate)))


@pytest.mark.parametrize("scale", [3.2, 32768.0])
def test_samples_beyond_full_scale_are_scaled_down_as_a_whole_and_counted(scale: float) -> None:
    x_T = tone_then_noise(1) / np.abs(tone_then_noise(1)).max()
    sound = sound_of(encoded(scale * x_T, "WAV", subtype="FLOAT"))
    np.testing.assert_allclose(sound.x_T.numpy(), x_T, atol=1e-6)
    assert sound.peak == pytest.approx(scale)
    assert sound.notes[0].startswith("goes beyond full scale")


def test_one_wild_sample_breaks_a_clip() -> None:
    x_T = tone_then_noise(1)
    x_T[1000] = 3e29
    with pytest.raises(BrokenClip, match=r"holds samples up to 3e\+29, where full scale is 1"):
        sound_of(encoded(x_T, "WAV", subtype="FLOAT"))


def test_what_resampling_overshoots_stays_within_full_scale() -> None:
    square_T = np.sign(np.sin(2 * np.pi * 500 * np.arange(44_100) / 44_100)).astype(np.float32)
    sound = sound_of(encoded(square_T, "WAV", rate=44_100, subtype="FLOAT"))
    assert 1.05 < sound.peak < 1.3
    assert float(sound.x_T.abs().max()) == pytest.approx(1)


def test_a_file_that_is_too_long_or_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_SAMPLES", 20_000)
    with pytest.raises(BrokenClip, match="cut it into parts"):
        sound_of(WAV)
    monkeypatch.setattr(decode, "MAX_SAMPLES", 40_000)
    with pytest.raises(BrokenClip, match="longer than"):
        sound_of(WAV, rate=48_000)
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 1000)
    with pytest.raises(BrokenClip, match="larger than"):
        sound_of(WAV)


def test_whatever_fails_in_decoding_is_the_files_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError("of a header's numbers")

    monkeypatch.setattr(torchaudio.functional, "resample", fails)
    with pytest.raises(BrokenClip, match="MemoryError: of a header's numbers"):
        sound_of(WAV, rate=8000)


@pytest.mark.parametrize("length", [1, 5000, 5001, 77_777])
@pytest.mark.parametrize(("orig", "new"), [(44_100, 16_000), (16_000, 32_000), (44_099, 32_000), (500_000, 16_000)])
def test_a_long_waveform_is_resampled_in_blocks_as_it_is_in_one(
    orig: int, new: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x_T = torch.randn(length, generator=torch.Generator().manual_seed(0))
    at_once_T = resample(x_T, orig=orig, new=new)
    monkeypatch.setattr(decode, "BLOCK", 5000)
    torch.testing.assert_close(resample(x_T, orig=orig, new=new), at_once_T, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")])
@pytest.mark.parametrize("second_rate", [16_000, 48_000])
def test_joined_files_are_heard_to_the_end(kind: str, subtype: str, second_rate: int) -> None:
    """Icecast writes chained Ogg files; libsndfile ends after the first link."""
    files = []
    for frequency, rate in ((440, 16_000), (880, second_rate)):
        tone = 0.2 * np.sin(2 * np.pi * frequency * np.arange(rate) / rate)
        file = io.BytesIO()
        soundfile.write(file, tone, rate, format=kind, subtype=subtype)
        files.append(file.getvalue())
    alone = [load_sound(io.BytesIO(content), rate=16_000).x_T for content in files]
    joined = load_sound(io.BytesIO(b"".join(files)), rate=16_000)
    torch.testing.assert_close(joined.x_T, torch.cat(alone), rtol=0, atol=0)
    assert joined.own_rate == soundfile.info(io.BytesIO(files[0])).samplerate
    assert len(decode.joined_parts(files[0])) == 1


@pytest.mark.parametrize("first", ["WAV", "AIFF", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("second", ["WAV", "FLAC", "OGG"])
def test_joined_files_of_different_formats_are_heard_to_the_end(first: str, second: str) -> None:
    tone = 0.2 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    one, other = encoded(tone, first), encoded(np.concatenate([tone, tone])[:20_000], second)
    alone = [load_sound(io.BytesIO(content), rate=RATE).x_T for content in (one, other, one)]
    found_T = load_sound(io.BytesIO(one + other), rate=RATE).x_T
    torch.testing.assert_close(found_T, torch.cat(alone[:2]), rtol=0, atol=0)
    if first != "MP3":  # it has no mark of its own within a file
        found_T = load_sound(io.BytesIO(one + other + one), rate=RATE).x_T
        torch.testing.assert_close(found_T, torch.cat(alone), rtol=0, atol=0)


def test_a_thousand_files_joined_to_one_are_all_heard() -> None:
    files = [encoded(np.full(10, level), "WAV") for level in (0.25, 0.5, 0.125)] * 400
    found_T = load_sound(io.BytesIO(b"".join(files)), rate=RATE).x_T
    torch.testing.assert_close(found_T, torch.tensor([0.25, 0.5, 0.125]).repeat_interleave(10).repeat(400))


def test_a_file_after_a_wav_of_odd_length_is_heard() -> None:
    """Samples of 8 bits make odd lengths, which Python's own writer does not make even as the format wants it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(RATE)
        writer.writeframes(bytes([192] * 11))
    one, other = file.getvalue(), encoded(np.full(10, 0.25), "WAV")
    assert (len(one), one[4:8]) == (44 + 11, (36 + 11).to_bytes(4, "little"))
    expected_T = torch.tensor([0.5] * 11 + [0.25] * 10)
    for joined in (one + other, one + b"\0" + other):
        torch.testing.assert_close(load_sound(io.BytesIO(joined), rate=RATE).x_T, expected_T)


def test_headers_that_a_file_only_keeps_are_no_other_file() -> None:
    """A FLAC may hold the header of the WAV that it was made of, and what follows a WAV need be no sound."""
    flac = encoded(np.zeros(16_000), "FLAC")
    kept = b"riff" + b"RIFF" + (1000).to_bytes(4, "little") + b"WAVEfmt "
    block = bytes([2]) + len(kept).to_bytes(3, "big") + kept
    assert decode.joined_parts(flac[:42] + block + flac[42:]) == [flac[:42] + block + flac[42:]]
    wav = encoded(np.zeros(16_000), "WAV")
    assert decode.joined_parts(wav + b"TAG of some program") == [wav + b"TAG of some program"]


@pytest.mark.parametrize("kept", [-1, -100, 20])
def test_an_ogg_file_that_is_cut_within_a_page_is_named(kept: int) -> None:
    """Also where the cut is in the last page's header: of it 20 bytes are left."""
    content = encoded(np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), "OGG")
    end = kept if kept < 0 else content.rindex(b"OggS") + kept
    with pytest.raises(BrokenClip, match="cut short: a page of Ogg in it is not whole"):
        load_sound(io.BytesIO(content[:end]), rate=RATE)
    assert len(load_sound(io.BytesIO(content), rate=RATE).x_T) == 40_000


def test_a_joined_file_that_is_cut_short_is_named() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000), 16_000, format="FLAC")
    with pytest.raises(BrokenClip, match=r"cut short|cannot be decoded|no samples"):
        load_sound(io.BytesIO(file.getvalue() + file.getvalue()[:60]), rate=16_000)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_sound_longer_than_the_caller_wants_is_refused(container: str) -> None:
    content = encoded(np.zeros(24_000), container)
    assert len(load_sound(io.BytesIO(content), rate=RATE, max_seconds=1.7).x_T) >= 24_000
    with pytest.raises(TooLong, match=r"lasts 1\.[56] s, longer than 1\.4 s; cut it into parts"):
        load_sound(io.BytesIO(content), rate=RATE, max_seconds=1.4)
