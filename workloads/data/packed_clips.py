"""The clips of a packed data set: read from its archives, and decoded where they are not stored decoded.

Axes: T samples, L samples of a part of a clip, N clips of the pack.
"""

import io
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray
from torch import Tensor

from workloads.config.data import Data
from workloads.data.archives import Archives, FetchedArchives, LocalArchives
from workloads.data.clip_store import MendedClip, damaged_clip
from workloads.data.clips import Clip
from workloads.data.containers import has_decoder
from workloads.data.decode import BrokenClip, NotReadHere, load_sound
from workloads.data.decoded import DecodedClip
from workloads.data.formats.listing import needs_av
from workloads.data.pack import Pack
from workloads.data.samples import cut_into, read_part_of, to_integers, to_waveform
from workloads.runtime.opener import Opener

FILE = "file://"
Value = TypeVar("Value")


class PackedClip(NamedTuple):
    """Where a clip's bytes are."""

    clip_id: str
    archive: int
    offset: int
    size: int
    crc32: int
    samples: int


class PackedClips:
    """The `ClipStore` of a packed data set, at one rate in Hz."""

    def __init__(self, pack: Pack, archives: Archives, *, rate: int) -> None:
        self.rate = rate
        self._pack, self._archives = pack, archives

    def without_clips(self) -> "PackedClips":
        return PackedClips(self._pack.without_index(), self._archives, rate=self.rate)

    def entry(self, clip_id: str) -> PackedClip:
        row, columns = self._row(clip_id), self._pack.columns
        return PackedClip(clip_id, *(int(columns[name][row]) for name in PackedClip._fields[1:]))

    def load(self, clip_id: str) -> Tensor:
        """The whole clip, x_T float32; ValueError where its bytes are damaged: a clip that is scored has no other."""
        try:
            return to_waveform(self._decode(self._read(self.entry(clip_id)), clip_id))
        except BrokenClip as error:
            raise damaged_clip(clip_id, error) from None

    def load_part(self, entry: PackedClip, part_L: NDArray[np.int16], *, start: Callable[[int], int]) -> int:
        """As `ClipStore`. Of samples stored as they are only those of the part are read, so no checksum is compared."""
        form = self._pack.manifest["form"]
        if form == "int16":
            return self._intact(entry, lambda: self._read_samples(entry, part_L, start=start))
        content = self._read(entry)
        if form == "flac":
            return _read_flac_part(content, part_L, start=start)
        return cut_into(part_L, self._decode(content, entry.clip_id), start=start)

    def ahead(self, entries: Sequence[PackedClip]) -> Iterator[PackedClip]:
        for entry, _ in zip(entries, self._archives.ahead([entry.archive for entry in entries]), strict=True):
            yield entry

    def decoded(self) -> Mapping[str, DecodedClip]:
        return _Decoded(self._pack)

    def mended(self) -> list[MendedClip]:
        return [MendedClip(self._pack.clip_ids[row], path, notes) for row, (path, notes) in self._pack.mended.items()]

    def _row(self, clip_id: str) -> int:
        ids = self._pack.clip_ids
        row = bisect_left(ids, clip_id)
        assert ids[row : row + 1] == [clip_id], f"clip {clip_id} is not in the pack"
        return row

    def require_decoder(self, clips: Sequence[Clip]) -> None:
        """Raise ValueError where the optional decoder is missing and a clip of the pack needs it.

        Reads one clip, and that only where it is missing.
        """
        foreign = (clip.clip_id for clip in clips if needs_av(clip.path))
        if self._pack.manifest["form"] != "original" or (first := next(foreign, None)) is None or has_decoder():
            return
        with suppress(BrokenClip):
            self._decode(self._read(self.entry(first)), first)

    def _intact(self, entry: PackedClip, read: Callable[[], Value]) -> Value:
        """What `read` returns, once more where this machine's copy of the archive was damaged; else BrokenClip."""
        try:
            return read()
        except BrokenClip:
            self._archives.mend(entry.archive)
            return read()

    def _read(self, entry: PackedClip) -> bytes:
        """The bytes of a member; BrokenClip where they are not those that were packed."""
        return self._intact(entry, lambda: self._read_bytes(entry))

    def _read_bytes(self, entry: PackedClip) -> bytes:
        with self._archives.open(entry.archive) as file:
            file.seek(entry.offset)
            content = io.BufferedReader(file).read(entry.size)
        if zlib.crc32(content) != entry.crc32:
            name = self._pack.manifest["archives"][entry.archive]["name"]
            raise BrokenClip(f"its bytes in {name} differ from their checksum")
        return content

    def _read_samples(self, entry: PackedClip, part_L: NDArray[np.int16], *, start: Callable[[int], int]) -> int:
        """Fill `part_L` from samples that are stored as they are; BrokenClip where their file is another one."""

        def start_of(samples: int) -> int:
            if samples != entry.samples:  # the bytes of other clips lie behind them
                raise ValueError(f"its header declares {samples} samples, {entry.samples} were packed")
            return start(samples)

        with self._archives.open(entry.archive) as file:
            file.seek(entry.offset)
            try:
                return read_part_of(file, part_L, start=start_of)
            except (ValueError, EOFError) as error:
                raise BrokenClip(str(error)) from error

    def _decode_original(self, content: bytes, clip_id: str) -> NDArray[np.int16]:
        """The same of a file that is packed as it was.

        It could be heard where it was packed, and its bytes are the same: no other clip may take its place, on the
        machines alone that cannot read it.
        """
        try:
            return to_integers(load_sound(io.BytesIO(content), rate=self.rate).x_T)
        except NotReadHere as error:
            raise ValueError(f"clip {clip_id} of a packed data set: {error}, before it is packed") from None
        except BrokenClip as error:
            raise ValueError(
                f"clip {clip_id} of a packed data set: {error}, and its bytes are those that were packed: install the "
                "packages with which it was packed, or pack the data set again"
            ) from None

    def _decode(self, content: bytes, clip_id: str) -> NDArray[np.int16]:
        """The samples of a whole member; ValueError where this installation cannot read it."""
        form = self._pack.manifest["form"]
        if form == "original":
            return self._decode_original(content, clip_id)
        try:
            if form == "int16":
                integers_T: NDArray[np.int16] = np.load(io.BytesIO(content), allow_pickle=False)
            else:
                integers_T, _ = soundfile.read(io.BytesIO(content), dtype="int16")
            return integers_T
        except (ValueError, soundfile.SoundFileError) as error:
            raise BrokenClip(f"cannot be decoded ({error})") from error


def _read_flac_part(content: bytes, part_L: NDArray[np.int16], *, start: Callable[[int], int]) -> int:
    """Fill `part_L` from a FLAC file, of which little else is decoded; returns the file's number of samples."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as sound:
            first = start(sound.frames)
            sound_L = part_L[: sound.frames - first]
            sound.seek(first)
            if len(sound.read(out=sound_L)) != len(sound_L):
                raise BrokenClip("cut short")
            part_L[len(sound_L) :] = 0
            return int(sound.frames)
    except soundfile.SoundFileError as error:
        raise BrokenClip(f"cannot be decoded ({error})") from error


class _Decoded(Mapping[str, DecodedClip]):
    """What the index knows of each clip, made when it is asked for: of millions it would take much memory."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    def __len__(self) -> int:
        return len(self._pack.clip_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pack.clip_ids)

    def __getitem__(self, clip_id: str) -> DecodedClip:
        row = bisect_left(self._pack.clip_ids, clip_id)
        if row == len(self) or self._pack.clip_ids[row] != clip_id:
            raise KeyError(clip_id)
        return self.at(row)

    def at(self, row: int) -> DecodedClip:
        pack = self._pack
        samples, own_rate = (int(pack.columns[name][row]) for name in ("samples", "own_rate"))
        notes = pack.mended[row][1] if row in pack.mended else ()
        return DecodedClip(samples, pack.manifest["rate"], own_rate, notes)

    def values(self) -> "_DecodedValues":
        return _DecodedValues(self)


class _DecodedValues(ValuesView[DecodedClip]):
    """In the order of the index, without a search for each clip."""

    _mapping: _Decoded

    def __iter__(self) -> Iterator[DecodedClip]:
        return map(self._mapping.at, range(len(self._mapping)))


def open_pack(pack: Pack, data: Data, opener: Opener, *, rate: int) -> PackedClips:
    """The clips of the pack at data.root, at this rate.

    Raises ValueError where sound is stored at another rate, and where an archive is larger than what may be kept of a
    store's on this machine.
    """
    manifest = pack.manifest
    if manifest["form"] != "original" and manifest["rate"] != rate:
        raise ValueError(
            f"data.root = {data.root!r}: packed as {manifest['form']} at {manifest['rate']} Hz, and the models need "
            f"{rate} Hz; pack it with --rate {rate}, or with --as original, which serves any rate"
        )
    if "://" not in data.root.removeprefix(FILE):
        folder = Path(data.root.removeprefix(FILE)).expanduser()
        return PackedClips(pack, LocalArchives(folder, manifest), rate=rate)
    largest = max((archive["bytes"] for archive in manifest["archives"]), default=0)
    if largest > data.cache_gb * 1e9:
        raise ValueError(
            f"data.cache_gb = {data.cache_gb:g}: the largest archive of {data.root} has {largest / 1e9:.3g} GB; keep "
            f"several of them: --set data.cache_gb={10 * largest / 1e9:.2g}"
        )
    cache = Path(data.cache).expanduser()
    archives = FetchedArchives(data.root, opener, manifest, pack.digest, cache, data.cache_gb)
    return PackedClips(pack, archives, rate=rate)
