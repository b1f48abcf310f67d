"""Tar archives of clips, written byte by byte: the same clips give the same bytes, wherever and whenever.

Does not depend on what the members hold.
"""

import hashlib
import re
import tarfile
import zlib
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE


def member_name(clip_id: str, ending: str) -> str:
    """The name of a clip's member: its id with `%`, `.`, slashes and control characters as %XX, then the ending.

    So it leads out of no folder, and WebDataset, for which a key ends at the first dot, finds one clip for each key.
    """
    return re.sub(r"[%./\\\x00-\x1f\x7f]", lambda match: f"%{ord(match[0]):02X}", clip_id) + ending


class ArchiveWriter:
    """Writes members into an open file, then the end of the archive; counts and hashes what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.num_bytes = 0

    @property
    def sha256(self) -> str:
        """Of what is written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def add(self, name: str, content: bytes) -> tuple[int, int]:
        """Write one member; returns where its content begins in the file, and the CRC-32 of the content."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(content), 0o644  # owner, group and time are 0
        self._write(header.tobuf(tarfile.PAX_FORMAT))
        offset = self.num_bytes
        self._write(content)
        self._write(bytes(-len(content) % BLOCK))
        return offset, zlib.crc32(content)

    def finish(self) -> None:
        """Write the end, padded as tar pads it."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.num_bytes % tarfile.RECORDSIZE))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.num_bytes += len(content)
