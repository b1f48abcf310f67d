"""Files that were joined into one: links of a chained Ogg file, FLAC files one after the other, files of other formats.

libsndfile reads the first alone. MPEG files are read frame by frame, whatever they were joined from. Decodes nothing.
"""

import io
import re
from collections.abc import Iterator
from itertools import chain, islice, pairwise
from typing import BinaryIO, NamedTuple

FLAC, OGG = b"fLaC", b"OggS"
ID3, ID3_HEADER = b"ID3", 10  # bytes of a tag's header, whose last four are its length, 7 bits each
OGG_PAGE = re.compile(rb"OggS\x00")  # its mark and version
FLAC_BEGINS = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # its name, then a STREAMINFO block of 34 bytes
FLAC_MARK = 8  # bytes of that
# how files begin that say so themselves, each in at most ANOTHER_MARK bytes: WAV, AIFF, FLAC, the first page of an Ogg
ANOTHER = re.compile(rb"RIFF.{4}WAVE|FORM.{4}AIF[FC]|fLaC[\x00\x80]\x00\x00\x22|OggS\x00\x02", re.DOTALL)
ANOTHER_MARK = 12
CHUNKS = {b"RIFF": "little", b"FORM": "big"}  # files that begin with their length
OGG_HEADER, OGG_BEGINS = 27, 2  # bytes of a page's header, whose last is the number of segments; a flag in its sixth
BLOCK = 2**20  # bytes that are searched at a time
READ_AHEAD = 2**20  # bytes, and more than a decoder reads beyond the end of its part


def joined_parts(content: bytes) -> list[bytes]:
    """The files that were joined into this one, any number of them."""
    file, parts, start = io.BytesIO(content), list[bytes](), 0
    other: int | None = 0
    while other is not None:
        other = another_format(io.BufferedReader(FilePart(file, start, len(content))))
        end = len(content) if other is None else start + other
        parts += _parts_of_one_format(content[start:end])
        start = end
    return parts


def _parts_of_one_format(content: bytes) -> list[bytes]:
    starts = [0]
    if content.startswith(OGG):
        starts += islice(ogg_links(io.BytesIO(content)), 1, None)
    elif (first := _flac_start(io.BytesIO(content))) is not None:
        starts += [match.start() for match in FLAC_BEGINS.finditer(content, first + 1)]
    return [content[start:end] for start, end in pairwise([*starts, len(content)])]


def open_parts(file: BinaryIO) -> Iterator["FilePart"]:
    """The files that were joined into this one, each after the one before has been read; in constant memory.

    A FLAC part goes on to the end of the file: its header says how many of its samples are its own. An Ogg part ends
    where it does, since libsndfile looks for its length there; so its pages are passed once before it is read. Of WAV
    and AIFF there is the first alone, up to its end: libsndfile would take what follows for a damaged part of it.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    kind = file.read(4)
    if kind == OGG:
        for start, end in pairwise(chain([0], islice(ogg_links(file), 1, None), [size])):
            yield FilePart(file, start, end)
        return
    if kind in CHUNKS:
        yield FilePart(file, 0, another_format(file) or size)
        return
    begin: int | None = 0
    flac = _flac_start(file)
    after = (flac or 0) + 1
    while begin is not None:
        part = FilePart(file, begin, size)
        yield part
        begin = None if flac is None else _next_flac(file, max(after, part.reached - READ_AHEAD))
        after = (begin or 0) + 1


def another_format(file: BinaryIO) -> int | None:
    """Where a file of another format begins that was joined to this one; None: nowhere. In constant memory.

    Of WAV and AIFF also one of the same. MPEG audio that follows another file is not found: it has no mark of its own.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(ANOTHER_MARK)
    if head[:4] in CHUNKS:
        length = int.from_bytes(head[4:8], CHUNKS[head[:4]])  # type: ignore[arg-type]
        end = ANOTHER_MARK - 4 + length  # some programs leave out the byte that makes it even
        return next(filter(None, (_if_another(file, place) for place in (end + length % 2, end))), None)
    if head.startswith(OGG):
        pages = list(_ogg_pages(file))
        following = [page.start for page in pages[1:]] + [-1]
        gaps = (page.end for page, start in zip(pages, following, strict=True) if page.end != start)
        return next(filter(None, (_if_another(file, end) for end in gaps)), None)
    flac = _flac_start(file)
    if flac is None and not _is_mpeg(head):
        return None  # a container, which may hold such marks, or no sound
    start = 1 if flac is None else _flac_frames(file, flac)
    while start < size:
        found = _next_mark(file, ANOTHER, ANOTHER_MARK, start)
        if found is None:
            return None
        file.seek(found)
        if flac is None or file.read(4) != FLAC:  # those of one format are told apart elsewhere
            return found
        start = found + 1
    return None


def _if_another(file: BinaryIO, end: int) -> int | None:
    file.seek(end)
    return end if ANOTHER.match(file.read(ANOTHER_MARK)) else None


def _is_mpeg(head: bytes) -> bool:
    """Whether a file begins with a tag or a frame of MPEG audio, layers I to III; AAC has layer 0."""
    return head.startswith(ID3) or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 6 != 0)


def _flac_frames(file: BinaryIO, start: int) -> int:
    """Where the sound of a FLAC file begins: before it are blocks of facts, which may hold another file's header."""
    place, last = start + len(FLAC), False
    while not last:
        file.seek(place)
        header = file.read(4)
        if len(header) < 4:
            return place
        last, place = bool(header[0] & 0x80), place + 4 + int.from_bytes(header[1:], "big")
    return place


def ogg_links(file: BinaryIO) -> Iterator[int]:
    """Where each link of a chained Ogg file begins: at a page that begins a stream, after one that does not."""
    begins = False
    for page in _ogg_pages(file):
        before, begins = begins, page.begins
        if begins and not before:
            yield page.start


def is_cut_ogg(file: BinaryIO) -> bool:
    """Whether a page of an Ogg file was cut short, at its end or where another was joined to it."""
    return not all(page.whole for page in _ogg_pages(file))


class _Page(NamedTuple):
    start: int
    end: int
    begins: bool  # a stream
    whole: bool


def _ogg_pages(file: BinaryIO) -> Iterator[_Page]:
    """The pages of an Ogg file. One that was cut short reaches into what follows, where the next one is looked for."""
    size = file.seek(0, io.SEEK_END)
    start: int | None = 0
    while start is not None:
        file.seek(start)
        header = file.read(OGG_HEADER)
        if not header.startswith(OGG):
            return
        if len(header) < OGG_HEADER:
            yield _Page(start, size, begins=False, whole=False)
            return
        segments = file.read(header[-1])
        end = start + OGG_HEADER + len(segments) + sum(segments)
        following: int | None = end
        file.seek(end)
        if end > size or file.read(len(OGG)) != OGG:
            following = _next_mark(file, OGG_PAGE, len(OGG) + 1, start + 1)
        cut = end > size or len(segments) < header[-1] or (following is not None and following < end)
        yield _Page(start, end, bool(header[5] & OGG_BEGINS), not cut)
        start = following


def _next_flac(file: BinaryIO, start: int) -> int | None:
    """Where the next FLAC file begins, at `start` or after it; None: nowhere."""
    return _next_mark(file, FLAC_BEGINS, FLAC_MARK, start)


def _next_mark(file: BinaryIO, mark: re.Pattern[bytes], length: int, start: int) -> int | None:
    """Where the next mark of `length` bytes begins, at `start` or after it; None: nowhere."""
    file.seek(start)
    kept = b""  # a mark may lie in two blocks
    while block := file.read(BLOCK):
        if match := mark.search(kept + block):
            return start - len(kept) + match.start()
        start += len(block)
        kept = (kept + block)[-(length - 1) :]
    return None


def _flac_start(file: BinaryIO) -> int | None:
    """Where a FLAC file begins, which some programs put an ID3 tag before; None where the file is none."""
    file.seek(0)
    head, start = file.read(ID3_HEADER), 0
    if head.startswith(ID3):
        start = ID3_HEADER + sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(head[-4:])))
    file.seek(start)
    return start if file.read(4) == FLAC else None


class FilePart(io.RawIOBase):
    """The bytes of an open file from `start` up to `end`, as a file; `reached`: up to where of the whole it was read.

    Moves the position of the file, and does not close it.
    """

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        super().__init__()
        self._file, self._start, self._end, self._at = file, start, end, 0
        self.reached = start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end - self._start}
        self._at = max(0, origins[whence] + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: any writable buffer
        self._file.seek(self._start + self._at)
        content = self._file.read(max(0, min(len(buffer), self._end - self._start - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        self.reached = max(self.reached, self._start + self._at)
        return len(content)
