"""From clips of a plain data set to an archive of a packed one, and to the index. Writes to open files only.

Axes: T samples of a clip.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from workloads.config.data import COMPUTED, Data
from workloads.data.archive import ArchiveWriter, member_name
from workloads.data.cache import QuarantinedClip
from workloads.data.clips import Clip
from workloads.data.computed import compute
from workloads.data.decode import MAX_FILE_BYTES, BrokenClip, Sound, load_sound
from workloads.data.pack import ENDINGS, NUMBERS, ArchiveFields, ArchiveRecord, BrokenFields, Form, Member
from workloads.data.samples import to_integers
from workloads.runtime.opener import Opener, is_fault_of_the_file, read_bounded, unreadable


@dataclass(frozen=True)
class Packing:
    """How clips are packed: in which form, and at which rate in Hz they are decoded."""

    data: Data
    opener: Opener
    form: Form
    rate: int

    def content(self, clip: Clip) -> tuple[bytes, str, Sound]:
        """The bytes of a clip's member, the ending of its name, and its sound.

        Also the bytes of an original are decoded: a file that cannot be heard is to be found before it is trained on.
        Raises BrokenClip and OSError as `load_sound`.
        """
        if self.data.format in COMPUTED:
            sound, content = compute(clip, self.data, self.rate, self.opener), b""
        else:
            with self.opener.open(self.opener.join(self.data.root, clip.path)) as file:
                read = read_bounded(file, MAX_FILE_BYTES)
            if read is None:
                raise BrokenClip(f"larger than {MAX_FILE_BYTES / 2**30:g} GiB; cut it into parts")
            content, sound = read, load_sound(io.BytesIO(read), rate=self.rate)
        if self.form == "original":
            return content, PurePosixPath(clip.path).suffix.lower(), sound
        return encode(to_integers(sound.x_T), self.form, self.rate), ENDINGS[self.form], sound

    def tried(self, clip: Clip) -> tuple[bytes, str, Sound] | QuarantinedClip:
        """The same, or why the clip is left out; OSError where a disk or store is at fault and not the file."""
        try:
            return self.content(clip)
        except BrokenClip as error:
            return QuarantinedClip(clip.clip_id, clip.path, str(error))
        except OSError as error:
            if not is_fault_of_the_file(error):
                raise
            return QuarantinedClip(clip.clip_id, clip.path, unreadable(error))


def encode(integers_T: NDArray[np.int16], form: Form, rate: int) -> bytes:
    """16-bit samples as a file: an .npy array, or FLAC, which gives them back as they are."""
    file = io.BytesIO()
    if form == "int16":
        np.save(file, integers_T)
    else:
        soundfile.write(file, integers_T, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def write_archive(file: BinaryIO, name: str, clips: Sequence[Clip], packing: Packing) -> ArchiveRecord:
    """Write the archive of these clips, in their order, without those that cannot be used."""
    writer = ArchiveWriter(file)
    quarantined: list[BrokenFields] = []
    members: list[Member] = []
    for clip in clips:
        result = packing.tried(clip)
        if isinstance(result, QuarantinedClip):
            quarantined.append(BrokenFields(clip_id=result.clip_id, path=result.path, reason=result.reason))
            continue
        content, ending, sound = result
        offset, crc32 = writer.add(member_name(clip.clip_id, ending), content)
        members.append(
            Member(
                clip_id=clip.clip_id,
                offset=offset,
                size=len(content),
                crc32=crc32,
                samples=len(sound.x_T),
                own_rate=sound.own_rate,
                notes=list(sound.notes),
            )
        )
    writer.finish()
    archive = ArchiveFields(name=name, bytes=writer.num_bytes, sha256=writer.sha256)
    return ArchiveRecord(archive=archive, members=members, quarantined=quarantined)


def index_file(clips: Sequence[Clip], records: Sequence[ArchiveRecord]) -> bytes:
    """The index as Parquet: a row for each clip of the archives, in their order."""
    import pyarrow
    import pyarrow.parquet

    by_id = {clip.clip_id: clip for clip in clips}
    members = [member for record in records for member in record["members"]]
    numbers = {name: [member[name] for member in members] for name in NUMBERS if name != "archive"}  # type: ignore
    numbers["archive"] = [number for number, record in enumerate(records) for _ in record["members"]]
    ordered = [by_id[member["clip_id"]] for member in members]
    text = {name: [getattr(clip, name) for clip in ordered] for name in ("clip_id", "path", "source")}
    lists = {name: [getattr(clip, name) for clip in ordered] for name in ("tags", "absent")}
    lists["notes"] = [member["notes"] for member in members]
    table = pyarrow.table(
        {
            **{name: pyarrow.array(values, pyarrow.string()) for name, values in text.items()},
            **{name: pyarrow.array(values, pyarrow.list_(pyarrow.string())) for name, values in lists.items()},
            "labelled": pyarrow.array([clip.labelled for clip in ordered], pyarrow.bool_()),
            "fold": pyarrow.array([clip.fold for clip in ordered], pyarrow.int64()),
            **{name: pyarrow.array(numbers[name], pyarrow.from_numpy_dtype(kind)) for name, kind in NUMBERS.items()},
        }
    )
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()
