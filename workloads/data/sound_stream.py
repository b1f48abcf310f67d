"""Sound that comes block by block: from a long file, a pipe, or as raw samples; in constant memory.

What `decode` does with whole files this does with blocks of BLOCK_SECONDS, averaged over channels. A stream that goes
beyond full scale is not scaled down, since its peak is known when it is over; `peak` says it. Does not depend on
models.

Axes: T samples, D channels.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import miniaudio
import numpy as np
import soundfile
import torch
from torch import Tensor

from workloads.data.containers import container_of
from workloads.data.decode import (
    CUT_OGG,
    MAX_PEAK,
    MIN_SAMPLES_SHARE,
    NO_LENGTH,
    UNKNOWN_FROM,
    BrokenClip,
    check_rate,
    declared_samples,
)
from workloads.data.joined import FilePart, another_format, is_cut_ogg, open_parts
from workloads.data.resampler import Resampler

BLOCK_SECONDS = 0.1
MAX_CHANNELS = 64
PCM = {"u8": "u1", "s16le": "<i2", "s16be": ">i2", "s32le": "<i4", "f32le": "<f4"}  # FFmpeg's name: NumPy's type
MPEG_HEAD = 2**20  # bytes in which an MPEG file's first frame must begin, behind its tags
AUDIO_FILES = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM")  # how files with a header begin


@dataclass(frozen=True)
class Pcm:
    """Raw samples without a header: their form (a key of PCM), rate in Hz, and channels, interleaved."""

    form: str
    rate: int
    channels: int = 1


class SoundStream:
    """One sound: x_T float32 blocks at `rate` Hz, each once; iterating raises BrokenClip where the sound is unusable.

    For one thread. After the last block `samples` and `peak` are those of all of it, and `notes` what was odd.
    """

    def __init__(self, rate: int, blocks: Iterator[Tensor]) -> None:
        check_rate(rate)
        self.rate, self._blocks = rate, blocks
        self.samples, self.peak = 0, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        for x_T in self._blocks:
            peak = float(x_T.abs().max())
            if not peak <= MAX_PEAK:  # also true for NaN
                where = f"{self.samples / self.rate:.1f} s"
                raise BrokenClip(f"holds samples that are NaN, infinite or beyond {MAX_PEAK:g} after {where}")
            self.samples, self.peak = self.samples + len(x_T), max(self.peak, peak)
            yield x_T

    @property
    def notes(self) -> tuple[str, ...]:
        """What was odd, in words."""
        if self.peak <= 1:
            return ()
        return (f"goes beyond full scale (peak {self.peak:.3g}), and a stream cannot be scaled down as a whole",)


def open_file(file: BinaryIO) -> SoundStream:
    """The sound of an open file that can be sought: what libsndfile and minimp3 read.

    Ogg or FLAC files that were joined into one are heard one after the other, at the rate of the first. Raises
    BrokenClip for other files, for one without samples, and for one that its header shows to be cut short.
    """
    head = file.read(16)
    file.seek(0)
    if name := container_of(head):
        raise BrokenClip(f"its container ({name}) cannot be read block by block; {_through_a_pipe()}")
    parts = open_parts(file)
    try:
        sound = soundfile.SoundFile(next(parts))
    except soundfile.SoundFileError as error:
        file.seek(0)
        return _open_mpeg(file, reason=_reason(error))
    if sound.format == "MP3":  # libsndfile ends where it guesses the end
        file.seek(0)
        return _open_mpeg(file, reason="")
    _require_whole(sound)
    return SoundStream(sound.samplerate, _blocks_of_parts(file, sound, parts))


def _require_whole(sound: soundfile.SoundFile) -> None:
    """BrokenClip where an open file shows that it holds no samples, or fewer than its header declares."""
    check_rate(sound.samplerate)
    declared = _declared(sound)
    if sound.frames >= NO_LENGTH:
        raise BrokenClip(f"does not declare its length, without which it cannot be read; {_through_a_pipe()}")
    if sound.frames == 0:
        raise BrokenClip("its header declares no samples")
    if sound.frames < MIN_SAMPLES_SHARE * declared:
        raise BrokenClip(f"cut short: {sound.frames} of {declared} samples; give what there is through a pipe, as -")


def open_pipe(descriptor: int) -> SoundStream:
    """The sound of a pipe that begins with a header: WAV, or what else libsndfile reads without seeking.

    Blocks until the header has come; the descriptor stays open. Raises BrokenClip where none comes.
    """
    try:
        sound = soundfile.SoundFile(descriptor, closefd=False)
    except soundfile.SoundFileError as error:
        raise BrokenClip(
            f"nothing came, or no header that can be read from a pipe ({_reason(error)}); raw samples need --pcm and "
            f"--rate, other formats than WAV a file, or {_through_a_pipe()}"
        ) from error
    return SoundStream(sound.samplerate, _sndfile_blocks(sound))


def open_pcm(file: BinaryIO, pcm: Pcm) -> SoundStream:
    """Raw samples of an open file or pipe, which ends with it.

    Raises BrokenClip where a file with a header begins instead. A pipe should be unbuffered: its blocks are what comes.
    """
    return SoundStream(pcm.rate, _pcm_blocks(file, pcm))


def unbuffered(descriptor: int) -> BinaryIO:
    """A descriptor's bytes as they come; the descriptor stays open."""
    return os.fdopen(descriptor, "rb", buffering=0, closefd=False)


def _declared(sound: soundfile.SoundFile) -> int:
    """The declared number of samples; 0 where there is none, or the largest, as from recorders and into pipes."""
    match = re.search(r"^data : (\d+)", sound.extra_info, re.MULTILINE)  # bytes of a WAV file, in libsndfile's log
    return 0 if match and int(match[1]) >= UNKNOWN_FROM else declared_samples(sound)


def _block(rate: int) -> int:
    return max(1, round(rate * BLOCK_SECONDS))


def _reason(error: soundfile.SoundFileError) -> str:
    return str(getattr(error, "error_string", error)).strip()


def _through_a_pipe() -> str:
    return "convert it on the way: ffmpeg -i FILE -f wav - | antiphon tag ... --stream -"


def _blocks_of_parts(file: BinaryIO, first: soundfile.SoundFile, others: Iterator[FilePart]) -> Iterator[Tensor]:
    """The blocks of an open file and of those that were joined to it, at the first one's rate.

    BrokenClip at the end where a page of Ogg, which declares no length, was cut short, and where a file of another
    format follows.
    """
    yield from _sndfile_blocks(first)
    for number, part in enumerate(others, start=2):
        try:
            sound = soundfile.SoundFile(part)
            _require_whole(sound)
            resampler = Resampler(orig=sound.samplerate, new=first.samplerate)
            for x_T in _sndfile_blocks(sound):
                yield from _unless_empty(resampler.push(x_T, last=False))
            yield from _unless_empty(resampler.push(torch.zeros(0), last=True))
        except soundfile.SoundFileError as error:
            raise BrokenClip(f"part {number} of the files joined in it cannot be decoded ({_reason(error)})") from error
        except BrokenClip as error:
            raise BrokenClip(f"part {number} of the files joined in it: {error}") from error
    if first.format == "OGG" and is_cut_ogg(file):
        raise BrokenClip(CUT_OGG)
    _require_one_format(file)


def _require_one_format(file: BinaryIO) -> None:
    """BrokenClip where a file that is not read on here was joined to this one, which has been heard."""
    if (place := another_format(file)) is not None:
        raise BrokenClip(
            f"another file was joined to it, at byte {place}: what is before that was heard; without "
            "--stream all of it is"
        )


def _unless_empty(x_T: Tensor) -> Iterator[Tensor]:
    if len(x_T):
        yield x_T


def _sndfile_blocks(sound: soundfile.SoundFile) -> Iterator[Tensor]:
    """The blocks of an open file, which is closed; BrokenClip at the end where they are fewer than declared."""
    size, samples, declared = _block(sound.samplerate), 0, _declared(sound)
    with sound:
        try:
            while len(block_TD := sound.read(size, dtype="float32", always_2d=True)):
                samples += len(block_TD)
                yield torch.from_numpy(block_TD).mean(dim=1)
        except soundfile.SoundFileError as error:
            raise BrokenClip(f"cannot be decoded further ({_reason(error)})") from error
    if samples < MIN_SAMPLES_SHARE * declared:
        raise BrokenClip(f"cut short: {samples} of {declared} samples")


def _pcm_blocks(file: BinaryIO, pcm: Pcm) -> Iterator[Tensor]:
    dtype = np.dtype(PCM[pcm.form])
    frame, rest, first = dtype.itemsize * pcm.channels, b"", True
    while content := file.read(frame * _block(pcm.rate)):
        rest += content
        if first and len(rest) >= 4:
            first = False
            if rest.startswith(AUDIO_FILES):
                raise BrokenClip(f"begins as a file with a header does ({rest[:4]!r}): leave out --pcm")
        whole = len(rest) // frame * frame
        if whole:
            yield _as_floats(np.frombuffer(rest[:whole], dtype)).reshape(-1, pcm.channels).mean(dim=1)
        rest = rest[whole:]
    if rest:
        raise BrokenClip(f"ends within a sample: {len(rest)} bytes of {frame}; check --pcm and --channels")


def _as_floats(samples_T: "np.ndarray") -> Tensor:
    """Samples with full scale at 1."""
    if samples_T.dtype.kind == "f":
        return torch.from_numpy(samples_T.astype(np.float32))
    half = 2.0 ** (8 * samples_T.dtype.itemsize - 1)
    centred_T = samples_T.astype(np.float64) - (half if samples_T.dtype.kind == "u" else 0.0)
    return torch.from_numpy((centred_T / half).astype(np.float32))


class _MpegFile(miniaudio.StreamableSource):
    """An open file as minimp3 reads it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, num_bytes: int) -> bytes:
        return self._file.read(num_bytes)

    def seek(self, offset: int, origin: miniaudio.SeekOrigin) -> bool:
        whence = io.SEEK_SET if origin == miniaudio.SeekOrigin.START else io.SEEK_CUR
        self._file.seek(offset, whence)
        return True


def _open_mpeg(file: BinaryIO, *, reason: str) -> SoundStream:
    """MPEG audio, frame by frame; BrokenClip, with the reason for which it is no other file, where it is none."""
    head = file.read(MPEG_HEAD)
    if not head:
        raise BrokenClip("is empty")
    try:
        info = miniaudio.mp3_get_info(head)
        file.seek(0)
        samples = miniaudio.stream_any(
            _MpegFile(file),
            miniaudio.FileFormat.MP3,
            output_format=miniaudio.SampleFormat.FLOAT32,
            nchannels=1,  # which averages them
            sample_rate=info.sample_rate,
            frames_to_read=_block(info.sample_rate),
        )
    except miniaudio.DecodeError as error:
        raise BrokenClip(f"cannot be decoded ({reason or error})") from error
    return SoundStream(info.sample_rate, _mpeg_blocks(file, samples))


def _mpeg_blocks(file: BinaryIO, samples: Iterable[Any]) -> Iterator[Tensor]:
    yield from (torch.from_numpy(np.array(block, np.float32)) for block in samples)
    _require_one_format(file)
