"""Sound in the containers of phones and browsers, which libsndfile does not read: MP4 (m4a), WebM, Matroska, AAC, ASF,
AMR. Decoded by FFmpeg through the optional package av (PyAV), whose wheels bring FFmpeg along.

Axes: T samples, D channels.
"""

import io
import itertools
import math
from typing import Any

import torch
from torch import Tensor

MAGIC = {  # what a file of the container has at a position -> FFmpeg's name for it
    (4, b"ftyp"): "mp4",
    (0, b"\x1a\x45\xdf\xa3"): "matroska",
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"): "asf",
    (0, b"#!AMR"): "amr",
}
WITHOUT_LENGTH = ("aac", "amr")  # frame after frame: FFmpeg guesses a duration from the first frames' bit rate
MIN_SHARE = 0.95  # of the declared duration; a file with less is cut short


class ContainerError(Exception):
    """No sound in this container; the message is the reason."""


class TooMuchSound(ContainerError):
    """It lasts longer than the caller wants."""


class NoDecoder(ContainerError):
    """The package that reads this container is not installed."""


def container_of(content: bytes) -> str | None:
    """FFmpeg's name of the container that a file's first bytes show; None for files that are no such container.

    It is always given to FFmpeg: asked to guess, FFmpeg also takes playlists, which name other files and addresses.
    """
    for (position, magic), name in MAGIC.items():
        if content[position : position + len(magic)] == magic:
            return name
    is_adts = len(content) > 1 and content[0] == 0xFF and content[1] & 0xF6 == 0xF0  # MPEG audio has another layer
    return "aac" if is_adts else None


def has_decoder() -> bool:
    """Whether the package that reads these containers is installed."""
    try:
        import av  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def decode_container(
    content: bytes, name: str, *, max_samples: int, max_seconds: float = math.inf
) -> tuple[Tensor, int]:
    """The samples of the first audio stream, averaged over channels: (x_T float32, rate in Hz).

    Raises NoDecoder without the package av, ContainerError for a file without sound, a damaged or a truncated one, and
    for more than `max_samples`, TooMuchSound for more than `max_seconds`.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise NoDecoder(
            f"its container ({name}) needs the package av: pip install 'antiphon[av]', or convert it to FLAC"
        ) from None
    try:
        with av.open(io.BytesIO(content), format=name) as file:
            if not file.streams.audio:
                raise ContainerError(f"holds no sound ({name})")
            stream = file.streams.audio[0]
            x_T, rate = _samples(file, stream, max_samples, max_seconds)
            declared = 0.0 if name in WITHOUT_LENGTH else _declared_seconds(file, stream)
            if len(x_T) < MIN_SHARE * declared * rate:
                raise ContainerError(f"cut short: {len(x_T)} of {round(declared * rate)} samples")
            return x_T, rate
    except av.FFmpegError as error:
        raise ContainerError(f"cannot be decoded ({name}: {error.strerror})") from error


def _declared_seconds(file: Any, stream: Any) -> float:
    """The duration of the sound, by the stream or, where it is the only one, the file; 0: none is declared."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return file.duration / 1e6 if file.duration and len(file.streams) == 1 else 0.0  # PyAV gives microseconds


def _samples(file: Any, stream: Any, max_samples: int, max_seconds: float) -> tuple[Tensor, int]:
    """All samples, at the rate of the first frame: joined files may go on at another, or with other channels."""
    from av import AudioResampler

    blocks: list[Tensor] = []
    rate, total, resampler, form = 0, 0, None, None
    for frame in itertools.chain(file.decode(stream), [None]):
        frames = []
        if resampler and (frame is None or form != (frame.rate, frame.layout.name)):
            frames += resampler.resample(None)  # what it still holds
            resampler = None
        if frame is not None:
            rate = rate or frame.rate
            form = (frame.rate, frame.layout.name)
            resampler = resampler or AudioResampler(format="fltp", rate=rate)
            frames += resampler.resample(frame)
        blocks += [torch.from_numpy(block.to_ndarray()).mean(dim=0) for block in frames]
        total += sum(map(len, blocks[len(blocks) - len(frames) :]))
        if total > max_seconds * max(rate, 1):
            raise TooMuchSound(f"longer than {max_seconds:g} s; cut it into parts")
        if total > max_samples:
            raise ContainerError(f"more than {max_samples} samples; cut it into parts")
    return (torch.cat(blocks) if blocks else torch.zeros(0)), rate or stream.rate
