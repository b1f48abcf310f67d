"""Decoding, resampling and the front ends, against torchaudio, the transform written out, and closed formulas."""

import io
import math

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.compliance.kaldi import fbank, get_mel_banks

from workloads.config.recipe import FRONT_ENDS, LOG_MELS
from workloads.data.decode import BrokenClip, cut_or_pad, decode, resample
from workloads.models.front_end import build_front_end

KINDS = sorted(FRONT_ENDS)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tone(hertz: float, rate: int, seconds: float = 1.0) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)


def sound_file(samples: np.ndarray, rate: int, container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(
    ("container", "subtype", "rate", "allowed"),
    [
        ("WAV", "FLOAT", 11_025, 0.0),
        ("WAV", "PCM_16", 16_000, 1 / 32768),
        ("FLAC", "PCM_24", 44_100, 1 / 2**23),
        ("OGG", "VORBIS", 48_000, 0.1),
        ("MP3", "MPEG_LAYER_III", 8_000, 0.1),
    ],
)
def test_every_format_gives_the_encoded_samples(container: str, subtype: str, rate: int, allowed: float) -> None:
    sine = 0.5 * tone(440, rate).numpy()
    x_T, decoded_rate, _ = decode(sound_file(sine, rate, container, subtype))
    assert decoded_rate == rate
    assert x_T.dtype == torch.float32
    assert len(x_T) == pytest.approx(rate, rel=0.01)
    inside = slice(rate // 4, rate // 2)
    assert np.abs(x_T.numpy() - sine)[inside].max() <= allowed


def test_channels_are_averaged() -> None:
    stereo = np.stack([np.full(1000, 0.5), np.full(1000, -0.25)], axis=1)
    x_T, _, _ = decode(sound_file(stereo, 44_100, "FLAC", "PCM_16"))
    assert x_T.unique().tolist() == [0.125]


WAV = sound_file(noise(16_000).numpy(), 16_000, "WAV", "PCM_16")
FLAC = sound_file(noise(16_000).numpy(), 16_000, "FLAC", "PCM_16")
MP3 = sound_file(noise(16_000).numpy(), 16_000, "MP3", "MPEG_LAYER_III")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"this is a text file\n" * 50, "cannot be decoded"),
        (WAV[:20], "cannot be decoded"),
        (WAV[:16_044], "cut short: 8000 of 16000 samples"),
        (FLAC[: len(FLAC) // 2], "cannot be decoded"),
        (MP3[: len(MP3) // 2], "cut short"),
        (sound_file(np.zeros(0), 16_000, "WAV", "PCM_16"), "holds no samples"),
        (sound_file(np.array([0.0, np.nan, 0.0]), 16_000, "WAV", "FLOAT"), "NaN or infinite"),
        (sound_file(np.array([0.0, np.inf, 0.0]), 16_000, "WAV", "FLOAT"), "NaN or infinite"),
    ],
    ids=["empty", "text", "header", "half a WAV", "half a FLAC", "half an MP3", "no samples", "NaN", "infinite"],
)
def test_files_without_usable_audio_are_broken_clips_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BrokenClip, match=reason):
        decode(content)


def test_a_wav_streamed_through_a_pipe_is_decoded_although_its_header_claims_four_gigabytes() -> None:
    streamed = bytearray(WAV)
    streamed[40:44] = b"\xff\xff\xff\xff"
    assert len(decode(bytes(streamed))[0]) == 16_000


def test_resampling_keeps_frequencies_below_the_new_nyquist_and_removes_the_rest() -> None:
    kept_T = resample(tone(1000, 44_100), orig=44_100, new=16_000)
    assert torch.allclose(kept_T[2000:-2000], tone(1000, 16_000)[2000:-2000], atol=5e-3)
    removed_T = resample(tone(12_000, 44_100), orig=44_100, new=16_000)
    assert removed_T[2000:-2000].abs().max() < 0.01


def test_a_rate_without_common_factors_is_resampled_without_a_huge_filter() -> None:
    x_T = resample(tone(1000, 44_099), orig=44_099, new=32_000)
    assert len(x_T) == pytest.approx(32_000, abs=2)
    assert torch.allclose(x_T[2000:20_000], tone(1000, 32_000)[2000:20_000], atol=0.02)


def test_cut_or_pad_cuts_and_pads_with_zeros_on_the_right() -> None:
    x_T = torch.arange(1.0, 6.0)
    assert cut_or_pad(x_T, 3).tolist() == [1, 2, 3]
    assert cut_or_pad(x_T, 3, offset=1).tolist() == [2, 3, 4]
    assert cut_or_pad(x_T, 4, offset=3).tolist() == [4, 5, 0, 0]


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_kaldi128_equals_torchaudios_fbank_clip_by_clip(level: float) -> None:
    x_BT = noise(4, 80_000) * torch.tensor([[1.0], [0.01], [5.0], [0.0]]) + level
    mel_BMF = build_front_end("kaldi128", clip_rate=16_000)(x_BT)
    for x_T, mel_MF in zip(x_BT, mel_BMF, strict=True):
        x_1T = (x_T - x_T.mean(dtype=torch.float64).float())[None]
        expected_FM = fbank(
            x_1T, htk_compat=True, sample_frequency=16_000, window_type="hanning", num_mel_bins=128, dither=0.0
        )
        assert torch.allclose(mel_MF.T, expected_FM, atol=1e-4, rtol=0)


def test_efficientat128_equals_the_transform_written_out_for_one_frame() -> None:
    x_T = noise(32_000)
    mel_MF = build_front_end("efficientat128", clip_rate=32_000)(x_T[None])[0]
    emphasised = x_T[1:].double() - 0.97 * x_T[:-1].double()
    frame = 50
    window = torch.hann_window(800, periodic=False, dtype=torch.float64)
    segment = emphasised[frame * 320 - 400 : frame * 320 + 400] * window
    power_K = torch.fft.rfft(segment, n=1024).abs().square()[:-1]
    banks_MK, _ = get_mel_banks(128, 1024, 32_000.0, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    assert torch.allclose(mel_MF[:, frame].double(), torch.log(banks_MK.double() @ power_K + 1e-5), atol=1e-3)


def test_efficientat128_has_the_published_size_and_silence() -> None:
    front_end = build_front_end("efficientat128", clip_rate=32_000)
    mel_BMF = front_end(torch.zeros(1, 320_000))
    assert mel_BMF.shape == (1, 128, 1000)
    normalised = (mel_BMF - front_end.mean) / front_end.std
    assert torch.allclose(normalised, torch.full_like(normalised, -1.4026), atol=5e-5)


def test_logmel64_of_silence_is_the_log_of_its_floor_and_its_mask_is_its_mean() -> None:
    front_end = build_front_end("logmel64", clip_rate=16_000)
    silence = front_end(torch.zeros(1, 16_000))
    assert torch.allclose(silence, torch.full_like(silence, math.log(1e-5)))
    assert front_end.mask_value == front_end.mean


@pytest.mark.parametrize("clip_rate", [16_000, 32_000, 44_100])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 2.3456, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_is_the_length_of_the_mel(kind: str, seconds: float, clip_rate: int) -> None:
    front_end = build_front_end(kind, clip_rate=clip_rate)
    mel_BMF = front_end(noise(2, round(seconds * clip_rate)))
    assert mel_BMF.shape == (2, front_end.bands, front_end.frames(seconds))


@pytest.mark.parametrize(
    ("kind", "frames"),
    [
        ("logmel64", 500),
        ("kaldi128", 498),
        ("efficientat128", 500),
        ("ced64", 501),
        ("logmel40", 250),
        ("logmel64_8k", 500),
        ("logmel40_8k", 250),
        ("pretrainedsed128", 500),
    ],
)
def test_five_seconds_have_the_known_number_of_frames(kind: str, frames: int) -> None:
    assert build_front_end(kind, clip_rate=32_000).frames(5.0) == frames


@pytest.mark.parametrize("kind", sorted(LOG_MELS))
def test_a_tones_loudest_band_is_the_same_at_any_clip_rate_and_its_power_follows_its_amplitude(kind: str) -> None:
    loudest = set()
    for clip_rate in (16_000, 32_000):
        mel_MF = build_front_end(kind, clip_rate=clip_rate)(
            torch.stack([tone(1000, clip_rate), 0.1 * tone(1000, clip_rate)])
        )
        loudest.add(int(mel_MF[0, :, mel_MF.shape[2] // 2].argmax()))
        difference = mel_MF[0].max() - mel_MF[1].max()
        hundredfold = 20.0 if kind == "ced64" else math.log(100)  # CED uses decibels
        assert difference == pytest.approx(hundredfold, abs=0.01), "power falls by 100 when amplitude falls by 10"
    assert len(loudest) == 1


@pytest.mark.parametrize("kind", ["logmel64_8k", "logmel40_8k"])
def test_the_front_ends_at_8_khz_hear_all_of_the_telephone_band_and_leave_no_band_empty(kind: str) -> None:
    front_end = build_front_end(kind, clip_rate=8_000)
    assert front_end.rate == 8_000
    assert (front_end.mel.mel_scale.fb > 0).any(dim=0).all(), "each band has a bin of the spectrum"
    loudest = [int(front_end(tone(hertz, 8_000)[None])[0, :, 20].argmax()) for hertz in (300, 1000, 2000, 3400)]
    assert loudest == sorted(set(loudest))
    assert loudest[-1] >= 0.9 * front_end.bands


@pytest.mark.parametrize("clip_rate", [16_000, 32_000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_clips_mel_does_not_depend_on_the_other_clips_of_the_batch(kind: str, clip_rate: int) -> None:
    front_end = build_front_end(kind, clip_rate=clip_rate)
    x_BT = noise(5, clip_rate)
    louder_BT = torch.cat((x_BT[2:3], 100 * noise(7, clip_rate, seed=1)))
    alone, first_of_louder, among = front_end(x_BT[2:3])[0], front_end(louder_BT)[0], front_end(x_BT)[2]
    # The others are 40 dB louder: a shared floor would differ by whole units, rounding in near-silent bands by 1e-5.
    assert torch.allclose(alone, first_of_louder, atol=1e-3, rtol=0)
    assert torch.allclose(alone, among, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_mels_are_computed_in_full_precision_inside_autocast(kind: str) -> None:
    front_end, x_BT = build_front_end(kind, clip_rate=16_000), noise(2, 16_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = front_end(x_BT)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, front_end(x_BT))


@pytest.mark.parametrize("kind", KINDS)
def test_a_front_end_has_nothing_to_save_or_to_train(kind: str) -> None:
    front_end = build_front_end(kind, clip_rate=44_100)
    assert not front_end.state_dict()
    assert not list(front_end.parameters())
    assert list(front_end.buffers()), "its constants must move with it to another device"


def test_unknown_kinds_and_clips_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="logmel64, kaldi128, efficientat128"):
        build_front_end("mfcc", clip_rate=16_000)
    with pytest.raises(ValueError, match=r"clip_seconds = 0.01.*0.05 s or more"):
        build_front_end("kaldi128", clip_rate=16_000).frames(0.01)


@pytest.mark.parametrize("samples", [79_999, 30_000, 401, 399])
@pytest.mark.parametrize("clip_rate", [16_000, 32_000])
def test_kaldi128_pads_short_clips_in_the_spectrogram_as_ast_does(samples: int, clip_rate: int) -> None:
    """AST computes the frames of the sound alone and pads them with 0, before it normalises."""
    front_end = build_front_end("kaldi128", clip_rate=clip_rate)
    length = round(5.0 * clip_rate)
    x_BT, sound_BT = 0.1 * noise(2, length) + 0.3, torch.ones(2, length, dtype=torch.bool)
    x_BT[0, samples:], sound_BT[0, samples:] = 0.0, False
    padded_MF, whole_MF = front_end(x_BT, sound_BT)
    alone = front_end.resample(x_BT[:1, :samples])
    frames = max(0, front_end._frames(alone.shape[1]))
    assert (padded_MF[:, frames:] == 0).all()
    if frames:  # the last ones hear the edge that resampling smooths
        expected_MF = build_front_end("kaldi128", clip_rate=16_000)(alone)[0]
        inside = frames if clip_rate == 16_000 else frames - 1
        torch.testing.assert_close(padded_MF[:, :inside], expected_MF[:, :inside], atol=2e-2, rtol=0)
    torch.testing.assert_close(whole_MF, front_end(x_BT[1:])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("kaldi128", "waveform16k_norm")])
def test_the_other_front_ends_hear_padding_as_silence(kind: str) -> None:
    front_end, x_BT = build_front_end(kind, clip_rate=16_000), noise(1, 16_000)
    x_BT[:, 9000:] = 0
    assert torch.equal(front_end(x_BT, torch.arange(16_000)[None] < 9000), front_end(x_BT))


@pytest.mark.parametrize("kind", FRONT_ENDS)
def test_a_batch_that_is_computed_in_parts_has_the_same_bits(kind, monkeypatch):
    front_end = build_front_end(kind, clip_rate=32_000)
    x_BT = torch.rand(5, 32_000, generator=torch.Generator().manual_seed(0)) - 0.5
    sound_BT = torch.arange(32_000) < torch.tensor([[32_000], [9_000], [20_000], [32_000], [500]])
    whole = front_end(x_BT), front_end(x_BT, sound_BT)
    monkeypatch.setattr("workloads.models.front_end.SAMPLES_AT_ONCE", 64_000)
    assert torch.equal(front_end(x_BT), whole[0])
    assert torch.equal(front_end(x_BT, sound_BT), whole[1])
