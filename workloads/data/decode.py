"""From an audio file to a waveform at a given rate and length. Does not depend on clips or models.

Axes: T samples, D channels.
"""

import io
import re
from fractions import Fraction
from typing import BinaryIO

import soundfile
import torch
import torchaudio
from torch import Tensor, nn

MIN_SAMPLES_SHARE = 0.95  # of the number declared in the file's header; a file with less is truncated


class BrokenClip(Exception):
    """A file without usable audio; the message is the reason."""


def decode(file: BinaryIO) -> tuple[Tensor, int]:
    """The samples of an open audio file, averaged over channels: (x_T float32 in about -1 to 1, rate in Hz).

    Raises BrokenClip for files that libsndfile cannot read, that hold no samples or are truncated, and for samples that
    are NaN or infinite.
    """
    # Read whole: libsndfile seeks back and forth, which is slow through an object store.
    content = io.BytesIO(file.read())
    try:
        with soundfile.SoundFile(content) as sound:
            x_TD = sound.read(dtype="float32", always_2d=True)
            declared, rate = _declared_samples(sound), sound.samplerate
    except (soundfile.SoundFileError, MemoryError) as error:  # a header may declare more samples than fit into memory
        reason = str(getattr(error, "error_string", error)).strip()
        raise BrokenClip(f"cannot be decoded ({reason or 'format not recognised'})") from error
    if len(x_TD) < MIN_SAMPLES_SHARE * declared:
        raise BrokenClip(f"cut short: {len(x_TD)} of {declared} samples")
    if len(x_TD) == 0:
        raise BrokenClip("holds no samples")
    x_T = torch.from_numpy(x_TD).mean(dim=1)
    if not bool(torch.isfinite(x_T).all()):
        raise BrokenClip("holds samples that are NaN or infinite")
    return x_T, rate


def _declared_samples(sound: soundfile.SoundFile) -> int:
    """The number of samples declared in the header.

    For WAV libsndfile silently corrects the number to the samples present and leaves both byte counts in its log.
    Programs that stream into a pipe write counts of 2 GB and more, which are ignored.
    """
    match = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if not match or int(match[1]) >= 2**31 - 1:
        return sound.frames
    return round(sound.frames * int(match[1]) / max(1, int(match[2])))


def resample(x_T: Tensor, *, orig: int, new: int) -> Tensor:
    """The waveform at rate `new` in Hz, by a windowed sinc that removes frequencies above half the new rate."""
    # The sinc table grows with the terms of the ratio: 44099 to 32000 Hz would take gigabytes. All usual rates are
    # exact below 1000, and for the others the pitch is off by less than a millionth.
    ratio = Fraction(orig, new).limit_denominator(1000)
    return x_T if ratio == 1 else torchaudio.functional.resample(x_T, ratio.numerator, ratio.denominator)


def cut_or_pad(x_T: Tensor, length: int, offset: int = 0) -> Tensor:
    """`length` samples from `offset` on, zero-padded on the right where the waveform ends earlier; may share memory."""
    cut_T = x_T[offset : offset + length]
    missing = length - cut_T.shape[0]
    return nn.functional.pad(cut_T, (0, missing)) if missing else cut_T
