"""The interface of whatever holds the sounds of a run's clips: the cache of decoded files, or a packed data set.

Axes: L samples of a part of a clip.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workloads.data.decoded import DecodedClip


def damaged_clip(clip_id: str, reason: object) -> ValueError:
    """The error where a clip was damaged after it was packed, and no other may take its place."""
    return ValueError(
        f"clip {clip_id} cannot be used any more: {reason}; `antiphon data verify` names what is damaged in the pack: "
        "restore these archives, or pack the data set again"
    )


@dataclass(frozen=True)
class MendedClip:
    """A clip whose file was mended before it was stored, and how."""

    clip_id: str
    path: str
    notes: tuple[str, ...]


class Entry(Protocol):
    """Where one clip is."""

    @property
    def clip_id(self) -> str: ...


class ClipStore(Protocol):
    """Sounds of clips at one rate in Hz, as 16-bit samples.

    An entry says where one clip is. It goes to loader processes, each of which has the store `without_clips`.
    """

    rate: int

    def entry(self, clip_id: str) -> Any:
        """Where a usable clip is: an `Entry`, of the store's own kind."""
        ...

    def load(self, clip_id: str) -> Tensor:
        """The whole clip, x_T float32."""
        ...

    def load_part(self, entry: Any, part_L: NDArray[np.int16], *, start: Callable[[int], int]) -> int:
        """Fill `part_L` with the samples of a clip from `start(T)` on, then zeros; returns T.

        Raises BrokenClip where the clip turns out to be unusable, OSError where a disk or a store fails.
        """
        ...

    def ahead(self, entries: Sequence[Any]) -> Iterator[Any]:
        """The same entries in their order; what the next ones need may be fetched meanwhile.

        For a thread that loads them one after the other. Raises OSError where a store fails.
        """
        ...

    def without_clips(self) -> "ClipStore":
        """The same store for another process, which is told each clip that it loads."""
        ...

    def decoded(self) -> Mapping[str, DecodedClip]:
        """What is known of each usable clip, by clip_id; decodes nothing."""
        ...

    def mended(self) -> Sequence[MendedClip]:
        """The clips whose files were mended before they were stored."""
        ...
