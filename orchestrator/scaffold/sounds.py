"""The sounds in a folder: which files can be heard, how long they are and at which rates."""

import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import soundfile

from workloads.config.data import Data
from workloads.data.decode import MAX_FILE_BYTES, NO_LENGTH, BrokenClip, check_rate, decode
from workloads.data.formats.listing import is_audio, list_files
from workloads.runtime.opener import LocalFiles, read_bounded

MOST_EXAMINED = 3000  # headers that are read; of more files as many, evenly spaced
SHORTEST_S = 0.05  # what a spectrum needs


@dataclass(frozen=True)
class Header:
    """What a sound file's header says."""

    path: str  # relative to the folder
    seconds: float
    rate: int  # Hz


@dataclass(frozen=True)
class Sounds:
    """What lies below a folder: sounds that can be heard, sounds that cannot and why, and other files."""

    root: str
    paths: tuple[str, ...]
    headers: tuple[Header, ...]  # of all of them, or of `MOST_EXAMINED`
    unusable: dict[str, str]  # path -> reason
    others: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """All sounds together, estimated where not all headers were read."""
        return statistics.fmean(header.seconds for header in self.headers) * len(self.paths)


def find_sounds(root: str) -> Sounds:
    """List the folder at `root`, a path on this machine, and read the headers of its sounds.

    Empty files and those whose header cannot be read are unusable, not mistakes. Raises ValueError where the folder
    is not on this machine or does not exist, where it holds no sound, and where none can be heard.
    """
    if "://" in root:
        raise ValueError(
            f"DIR = {root!r}: must be on this machine; for files on a store write a manifest (docs/data.md)"
        )
    folder = Path(root).expanduser().absolute()
    require_text("DIR", str(folder))
    if folder.is_file():
        raise ValueError(f"DIR = {root!r}: is a file; give the folder that holds the recordings")
    listed = list_files(Data(format="folders", root=str(folder)), LocalFiles())
    audio = [path for path in listed if is_audio(path)]
    if not audio:
        kinds = sorted({os.path.splitext(path)[1].lower() or "no ending" for path in listed})
        what = f"{len(listed)} files ({', '.join(kinds[:5])})" if listed else "no files"
        raise ValueError(
            f"DIR = {root!r}: holds no sounds, but {what}; give the folder that holds them, as wav, flac, ogg or mp3"
        )
    every = -(-len(audio) // MOST_EXAMINED)
    headers, unusable = [], {}
    for number, path in enumerate(audio):
        try:
            if (folder / path).stat().st_size == 0:
                raise BrokenClip("is empty")
            if number % every == 0:
                headers.append(_header(folder, path))
        except (BrokenClip, OSError) as error:
            unusable[path] = str(error)
    if not headers:
        path, reason = next(iter(unusable.items()))
        raise ValueError(f"DIR = {root!r}: none of its {len(audio)} sounds can be heard; {path}: {reason}")
    usable = tuple(path for path in audio if path not in unusable)
    return Sounds(str(folder), usable, tuple(headers), unusable, tuple(path for path in listed if not is_audio(path)))


def require_text(option: str, path: str) -> None:
    """ValueError for a path that no recipe can hold, since it is not in UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option} = {path!a}: is not in UTF-8, as recipes are; rename the folder") from None


def _header(folder: Path, path: str) -> Header:
    """Length and rate of one file; by decoding it where its header does not say. BrokenClip where it is unusable."""
    with (folder / path).open("rb") as file:
        seconds, rate = _length_and_rate(file)
    if seconds < SHORTEST_S:
        raise BrokenClip(f"lasts {seconds:.3f} s, less than the {SHORTEST_S:g} s that a spectrum needs")
    return Header(path, seconds, rate)


def _length_and_rate(file: BinaryIO) -> tuple[float, int]:
    try:
        with soundfile.SoundFile(file) as sound:
            if 0 < sound.frames < NO_LENGTH:
                check_rate(sound.samplerate)
                return sound.frames / sound.samplerate, sound.samplerate
    except soundfile.SoundFileError:
        pass  # some that libsndfile does not open can be decoded all the same
    content = read_bounded(file, MAX_FILE_BYTES)
    if content is None:
        raise BrokenClip("is too large to be one clip; cut it into parts")
    x_T, rate, _ = decode(content)
    return len(x_T) / rate, rate
