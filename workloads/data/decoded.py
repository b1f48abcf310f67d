"""What decoding has found out about each clip of the cache: length, the file's own rate, what was mended.

Does not depend on clips, tags or audio files: it knows the cache's keys.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from workloads.runtime.atomic_files import replace_bytes
from workloads.runtime.json_files import json_text, parse_json

INDEX = "decoded.jsonl"
MAX_REPEATS = 1000  # lines of keys that were decoded again, beside as many lines as there are keys


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """What decoding has found out about one file."""

    samples: int  # at the cache's rate
    rate: int  # Hz of the cache, of which `samples` are counted
    own_rate: int  # Hz of the file itself
    notes: tuple[str, ...] = ()  # what was mended

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


class DecodedIndex:
    """One JSON line for each decoded clip, in a file beside the stored clips.

    Contract: `read` and `add` are called with the cache's lock held, by one process at a time, but `add` by several of
    its threads; `read` may be called without the lock where nothing is written afterwards. A line is written by one
    call in append mode, before its clip is stored: a kill leaves at most a torn line, or a line without a clip. A clip
    without a line counts as not stored.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / INDEX
        self._decoded: dict[str, DecodedClip] = {}
        self._num_lines = 0

    def read(self) -> None:
        """Read the file again; damaged lines are left out."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            lines = []
        self._num_lines = sum(map(bool, lines))
        self._decoded = dict(entry for entry in map(_parse, lines) if entry)

    def get(self, key: str) -> DecodedClip | None:
        """What is known of the clip with this key; None: it was not decoded."""
        return self._decoded.get(key)

    def add(self, key: str, decoded: DecodedClip) -> None:
        """Record one clip."""
        self._decoded[key] = decoded
        with self.path.open("ab") as file:
            file.write(_line(key, decoded))

    def shorten(self) -> None:
        """Write the file anew where clips that were decoded again have made it long."""
        if self._num_lines > 2 * len(self._decoded) + MAX_REPEATS:
            replace_bytes(self.path, b"".join(_line(key, decoded) for key, decoded in self._decoded.items()))


class _Line(TypedDict):
    """A line of the file."""

    key: str
    samples: Annotated[int, Interval(ge=0, lt=2**62)]
    rate: Annotated[int, Interval(gt=0, lt=2**62)]
    own_rate: Annotated[int, Interval(gt=0, lt=2**62)]
    notes: list[str]


def _parse(line: bytes) -> tuple[str, DecodedClip] | None:
    """Key and value of a line; None for one that is damaged, as by a kill, and for the blank before each."""
    try:
        fields: _Line = parse_json(line, INDEX, _Line)
    except ValueError:
        return None
    return fields["key"], DecodedClip(fields["samples"], fields["rate"], fields["own_rate"], tuple(fields["notes"]))


def _line(key: str, decoded: DecodedClip) -> bytes:
    """Begins on a line of its own, so that a torn line before it spoils no other."""
    return b"\n" + json_text({"key": key, **asdict(decoded)}).encode() + b"\n"
