"""From an audio file to the waveform that training, scoring and `tag` hear. Does not depend on clips or models.

Axes: T samples, D channels.
"""

import io
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import miniaudio
import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor, nn

from workloads.data.containers import ContainerError, NoDecoder, TooMuchSound, container_of, decode_container
from workloads.data.joined import OGG, is_cut_ogg, joined_parts
from workloads.runtime.opener import read_bounded

MAX_FILE_BYTES = 4 * 2**30
MAX_SAMPLES = 2**29  # of a waveform, before and after resampling: 3 hours at 48 kHz; takes 8 bytes a sample at most
MIN_RATE, MAX_RATE = 100, 2_000_000  # Hz; a damaged header declares rates beyond these
MAX_PEAK = 2.0**31  # full scale is 1; integers that were written as floats without scaling reach this
MIN_SAMPLES_SHARE = 0.95  # of the number declared in the file's header; a file with less is truncated
CUT_OGG = "cut short: a page of Ogg in it is not whole"
BLOCK = 2**20  # samples decoded, and resampled, at a time
NO_LENGTH = 2**62  # samples; libsndfile's number for a FLAC that does not declare its own is larger
SINC_WIDTH = 8  # samples at the lower rate on either side that torchaudio's filter reaches, and one
XING_WITHIN = 200  # bytes from the beginning of the first frame
XING_SLACK = 4 * 1152  # samples: the header's own frame and the encoder's delay and padding
UNKNOWN_FROM = 2**31 - 2**16  # bytes; programs that stream into a pipe declare such counts, and recorders first write 0
RIFF_CHUNKS = (b"LIST", b"fact", b"bext", b"cue ", b"smpl", b"id3 ", b"ID3 ", b"JUNK", b"PEAK")  # beside the sound


class BrokenClip(Exception):
    """A file without usable audio; the message is the reason."""


class NotReadHere(BrokenClip):
    """A file that another installation can read."""


class TooLong(BrokenClip):
    """A sound that is longer than the caller wants."""


@dataclass(frozen=True)
class Sound:
    """What is heard of a file: x_T float32 within -1 to 1, and what was mended."""

    x_T: Tensor
    own_rate: int  # Hz of the file, before resampling
    peak: float = 1.0  # of the file's samples; what is above 1, full scale, was scaled down to it
    repaired: bool = False  # its header lacked the size of the sound

    @property
    def notes(self) -> tuple[str, ...]:
        """What was mended, in words."""
        notes = {
            f"goes beyond full scale (peak {self.peak:.3g}): scaled down": self.peak > 1,
            "its header lacks the size of the sound: heard to the end of the file": self.repaired,
        }
        return tuple(note for note, applies in notes.items() if applies)


def load_sound(file: BinaryIO, *, rate: int, max_seconds: float = math.inf) -> Sound:
    """The sound of an open audio file at `rate` in Hz: decoded, resampled, within full scale.

    A waveform that goes beyond full scale is scaled down to it as a whole. Raises BrokenClip for everything that is
    the file's fault, of it TooLong for a sound of more than `max_seconds`, where a header says so before it is decoded;
    OSError where reading fails.
    """
    content = read_bounded(file, MAX_FILE_BYTES)  # libsndfile seeks back and forth: slow through an object store
    if content is None:
        raise BrokenClip(f"larger than {MAX_FILE_BYTES / 2**30:g} GiB; cut it into parts")
    try:
        x_T, own_rate, repaired = _decode_parts(joined_parts(content), rate=rate, max_seconds=max_seconds)
        peak = max(float(extreme.abs()) for extreme in x_T.aminmax())
        if not peak <= MAX_PEAK:
            raise BrokenClip(f"holds samples up to {peak:.3g}, where full scale is 1")
        return Sound(x_T / peak if peak > 1 else x_T, own_rate, max(peak, 1.0), repaired)
    except BrokenClip:
        raise
    except Exception as error:  # whatever a decoder or a header's numbers lead to is this file's fault
        raise BrokenClip(f"cannot be decoded ({type(error).__name__}: {error})") from error


def _decode_parts(parts: list[bytes], *, rate: int, max_seconds: float) -> tuple[Tensor, int, bool]:
    """The samples of all parts at `rate`, the first part's own rate, whether one was repaired."""
    waveforms, total, first_rate, any_repaired = [], 0, 0, False
    for part in parts:
        x_T, own_rate, repaired = decode(part, max_seconds=max_seconds)
        if part.startswith(OGG) and is_cut_ogg(io.BytesIO(part)):  # libsndfile ends where it can, without a word
            raise BrokenClip(CUT_OGG)
        total += len(x_T) * rate // own_rate
        _require_shorter(total, rate, max_seconds)
        if total > MAX_SAMPLES:
            raise BrokenClip(f"longer than {MAX_SAMPLES / rate / 3600:.1f} hours; cut it into parts")
        waveforms.append(resample(x_T, orig=own_rate, new=rate))
        first_rate, any_repaired = first_rate or own_rate, any_repaired or repaired
    return torch.cat(waveforms) if len(waveforms) > 1 else waveforms[0], first_rate, any_repaired


def decode(content: bytes, *, max_seconds: float = math.inf) -> tuple[Tensor, int, bool]:
    """The samples of an audio file, averaged over channels: (x_T float32, rate in Hz, whether it was repaired).

    Raises BrokenClip for files that are empty, that cannot be read, that hold no samples or are truncated, and for
    samples that are not finite.
    """
    if not content:
        raise BrokenClip("is empty")
    content, repaired = _with_true_wav_size(content)
    if name := container_of(content):
        x_T, rate = _decode_container(content, name, max_seconds)
    else:
        x_T, rate = _decode_plain(content, max_seconds)
    if len(x_T) == 0:
        raise BrokenClip("holds no samples")
    if not all(bool(extreme.isfinite()) for extreme in x_T.aminmax()):  # NaN is the extreme of what holds one
        raise BrokenClip("holds samples that are NaN or infinite")
    return x_T, rate, repaired


def _decode_container(content: bytes, name: str, max_seconds: float) -> tuple[Tensor, int]:
    try:
        x_T, rate = decode_container(content, name, max_samples=MAX_SAMPLES, max_seconds=max_seconds)
    except NoDecoder as error:
        raise NotReadHere(str(error)) from None
    except TooMuchSound as error:
        raise TooLong(str(error)) from None
    except ContainerError as error:
        raise BrokenClip(str(error)) from error
    check_rate(rate)
    return x_T, rate


def _decode_plain(content: bytes, max_seconds: float) -> tuple[Tensor, int]:
    """The samples of a file that libsndfile reads, or of MPEG audio."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as sound:
            check_rate(sound.samplerate)
            declared = declared_samples(sound)
            if sound.format == "MP3":
                declared = declared if _xing_header(content) is not None else 0
                x_T, rate = _decode_mpeg(content, max_seconds)
            elif sound.frames >= NO_LENGTH:  # libsndfile cannot read on without a length
                x_T, rate = _samples_and_rate(miniaudio.flac_read_f32(content))
            else:
                _require_shorter(sound.frames, sound.samplerate, max_seconds)
                x_T, rate = _read_blocks(sound), sound.samplerate
            if len(x_T) < MIN_SAMPLES_SHARE * declared:
                raise BrokenClip(f"cut short: {len(x_T)} of {declared} samples")
    except soundfile.SoundFileError as error:
        try:  # libsndfile wants an MPEG frame at the beginning; these begin with padding, or in the middle of one
            x_T, rate = _decode_mpeg(content, max_seconds)
        except TooLong:
            raise
        except BrokenClip:
            reason = str(getattr(error, "error_string", error)).strip()
            raise BrokenClip(f"cannot be decoded ({reason or 'format not recognised'})") from error
    return x_T, rate


def _require_shorter(samples: int, rate: int, max_seconds: float) -> None:
    if samples > max_seconds * rate:
        raise TooLong(f"lasts {samples / rate:.1f} s, longer than {max_seconds:g} s; cut it into parts")


def check_rate(rate: int) -> None:
    """BrokenClip for a sample rate that only a damaged header declares."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BrokenClip(f"declares a sample rate of {rate} Hz, outside {MIN_RATE} to {MAX_RATE}: a damaged header")


def _read_blocks(sound: soundfile.SoundFile) -> Tensor:
    """All samples of an open file, block by block: a header may declare more samples than fit into memory."""
    size, blocks, total = max(1, BLOCK // sound.channels), [], 0
    while len(block_TD := sound.read(size, dtype="float32", always_2d=True)):
        blocks.append(torch.from_numpy(block_TD).mean(dim=1))
        total += len(block_TD)
        if total > MAX_SAMPLES:
            raise BrokenClip(f"more than {MAX_SAMPLES} samples; cut it into parts")
    return torch.cat(blocks) if blocks else torch.zeros(0)


def _decode_mpeg(content: bytes, max_seconds: float) -> tuple[Tensor, int]:
    """The samples of MPEG audio: every frame in the file.

    libsndfile takes the number of samples from the first frame's bit rate or its Xing header, which is wrong for
    variable bit rates, joined files and excerpts. minimp3, in miniaudio, follows the frames; it too believes a Xing
    header, so the header's name is removed where the file has more frames than it declares.
    """
    if max_seconds < math.inf:
        _require_short_mpeg(content, max_seconds)
    sound, header = _read_mpeg(content), _xing_header(content)
    if header is not None:
        whole = _read_mpeg(content[:header] + bytes(4) + content[header + 4 :])
        if whole.num_frames > sound.num_frames + XING_SLACK:
            sound = whole
    return _samples_and_rate(sound)


def _require_short_mpeg(content: bytes, max_seconds: float) -> None:
    """TooLong where the frames, or a Xing header, say so; what is wrong besides is found when it is decoded."""
    try:
        info = miniaudio.mp3_get_info(content)
    except miniaudio.DecodeError:
        return
    _require_shorter(info.num_frames, max(1, info.sample_rate), max_seconds)


def _read_mpeg(content: bytes) -> miniaudio.DecodedSoundFile:
    try:
        return miniaudio.mp3_read_f32(content)
    except miniaudio.DecodeError as error:
        raise BrokenClip(f"cannot be decoded ({error})") from error


def _samples_and_rate(sound: miniaudio.DecodedSoundFile) -> tuple[Tensor, int]:
    check_rate(sound.sample_rate)
    if sound.num_frames > MAX_SAMPLES:
        raise BrokenClip(f"more than {MAX_SAMPLES} samples; cut it into parts")
    x_TD = np.frombuffer(sound.samples, dtype=np.float32).reshape(-1, sound.nchannels)
    return torch.from_numpy(x_TD.mean(axis=1)), sound.sample_rate


def _xing_header(content: bytes) -> int | None:
    """Where the name of the Xing header is, with which an MPEG file declares its length; None: it has none."""
    tag_size = 0
    if content[:3] == b"ID3" and len(content) > 10:  # seven bits of each byte
        tag_size = 10 + sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True))
    match = re.search(b"Xing|Info", content[tag_size : tag_size + XING_WITHIN])
    return tag_size + match.start() if match else None


def _with_true_wav_size(content: bytes) -> tuple[bytes, bool]:
    """A WAV file whose recorder never wrote the size of its data (or a pipe could not) gets that size.

    Returns the file, and whether it was changed.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return content, False
    for name, start, size in _riff_chunks(content):
        present = len(content) - start
        unknown = size >= UNKNOWN_FROM > present or (size == 0 and content[start : start + 4] not in RIFF_CHUNKS)
        if name == b"data" and unknown and present > 0:
            return content[: start - 4] + struct.pack("<I", min(present, 0xFFFFFFFF)) + content[start:], True
    return content, False


def _riff_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start of the content and declared size of each chunk of a WAV file."""
    start = 12
    while start + 8 <= len(content):
        size = struct.unpack_from("<I", content, start + 4)[0]
        yield content[start : start + 4], start + 8, size
        start += 8 + size + size % 2


def declared_samples(sound: soundfile.SoundFile) -> int:
    """The number of samples declared in the header; 0 where it declares none.

    For WAV libsndfile silently corrects the number to the samples present and leaves both byte counts in its log. For
    MPEG without a Xing header this is libsndfile's estimate.
    """
    match = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if match:
        return round(sound.frames * int(match[1]) / max(1, int(match[2])))
    return sound.frames if sound.frames < NO_LENGTH else 0


def resample(x_T: Tensor, *, orig: int, new: int) -> Tensor:
    """The waveform at rate `new` in Hz, by a windowed sinc that removes frequencies above half the new rate.

    A long one block by block, because the whole at once takes several times its own memory.
    """
    # The sinc table grows with the terms of the ratio: 44099 to 32000 Hz would take gigabytes. All usual rates are
    # exact below 1000, and for the others the pitch is off by less than a millionth.
    ratio = Fraction(orig, new).limit_denominator(1000)
    if ratio == 1:
        return x_T
    down, up = ratio.numerator, ratio.denominator
    size = max(1, BLOCK // down) * down  # a whole number of samples at both rates, as are the margins
    margin = (1 + -(-SINC_WIDTH * max(down, up) // (down * up))) * down
    blocks = []
    for start in range(0, len(x_T), size):
        first = max(0, start - margin)
        block_T = torchaudio.functional.resample(x_T[first : start + size + margin], down, up)
        begin = (start - first) // down * up
        blocks.append(block_T[begin : begin + size // down * up])
    return torch.cat(blocks) if blocks else x_T


def cut_or_pad(x_T: Tensor, length: int, offset: int = 0) -> Tensor:
    """`length` samples from `offset` on, zero-padded on the right where the waveform ends earlier; may share memory."""
    cut_T = x_T[offset : offset + length]
    missing = length - cut_T.shape[0]
    return nn.functional.pad(cut_T, (0, missing)) if missing else cut_T
