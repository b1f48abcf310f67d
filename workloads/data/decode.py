"""From an audio file to a waveform at a wanted rate. Knows no clips and no models.

Axes: T samples, C channels.
"""

import io
import re
from fractions import Fraction
from typing import BinaryIO

import soundfile
import torch
import torchaudio
from torch import Tensor, nn

SHORTEST_SHARE = 0.95  # of what a file's header promises; with less the file was cut short


class BrokenClip(Exception):
    """A file that holds no usable audio; the message is the reason."""


def decode(file: BinaryIO) -> tuple[Tensor, int]:
    """The samples of an open audio file, channels averaged: (x_T float32 in about -1 to 1, rate in Hz).

    Raises BrokenClip for what libsndfile cannot read, for files without samples or cut short, and for samples that are
    NaN or infinite.
    """
    # Read whole: libsndfile seeks back and forth, which is slow through an object store.
    raw = io.BytesIO(file.read())
    try:
        with soundfile.SoundFile(raw) as sound:
            x_TC = sound.read(dtype="float32", always_2d=True)
            promised, rate = _promised_samples(sound), sound.samplerate
    except (soundfile.SoundFileError, MemoryError) as error:  # a header may claim more samples than fit anywhere
        reason = str(getattr(error, "error_string", error)).strip()
        raise BrokenClip(f"cannot be decoded ({reason or 'format not recognised'})") from error
    if len(x_TC) < SHORTEST_SHARE * promised:
        raise BrokenClip(f"cut short: {len(x_TC)} of {promised} samples")
    if len(x_TC) == 0:
        raise BrokenClip("holds no samples")
    x_T = torch.from_numpy(x_TC).mean(dim=1)
    if not bool(torch.isfinite(x_T).all()):
        raise BrokenClip("holds samples that are NaN or infinite")
    return x_T, rate


def _promised_samples(sound: soundfile.SoundFile) -> int:
    """How many samples the header speaks of.

    For WAV libsndfile silently corrects the number to what is there and leaves both byte counts in its log. Counts of
    2 GB and more are what programs write that stream into a pipe, so they promise nothing.
    """
    found = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if not found or int(found[1]) >= 2**31 - 1:
        return sound.frames
    return round(sound.frames * int(found[1]) / max(1, int(found[2])))


def resample(x_T: Tensor, *, orig: int, new: int) -> Tensor:
    """The same sound at another rate in Hz, by a windowed sinc that removes what the new rate cannot hold."""
    # The sinc table grows with the terms of the ratio: 44099 to 32000 Hz would take gigabytes. All usual rates are
    # exact below 1000, and for the others the pitch is off by less than a millionth.
    ratio = Fraction(orig, new).limit_denominator(1000)
    return x_T if ratio == 1 else torchaudio.functional.resample(x_T, ratio.numerator, ratio.denominator)


def fit(x_T: Tensor, length: int, offset: int = 0) -> Tensor:
    """`length` samples from `offset` on, with zeros on the right where the clip ends before."""
    cut_T = x_T[offset : offset + length]
    return nn.functional.pad(cut_T, (0, length - cut_T.shape[0]))
