"""Where the rows of a clip are: from names to numbers, in 12 bytes a clip.

The names themselves are not kept: two million of them would take hundreds of megabytes as a dictionary.

Axes: B clips that are looked up.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

ABSENT = -1


class ClipIndex:
    """The numbers of clips in a store, by the 64-bit hashes of their names in this process.

    Built from the names, which are compared in full. `wanted` are the clips that will be looked up; None: those of the
    store. A name that was neither wanted nor stored is absent, too, but for a chance of one in 2**64 for each clip of
    the index: give `wanted` to exclude it.
    """

    def __init__(self, stored: Iterable[list[str]], wanted: Sequence[str] | None = None) -> None:
        """`stored` are the names in the order of their numbers, ascending, in batches."""
        self.missing: tuple[str, ...] = ()  # wanted, not stored; sorted
        if wanted is None:
            hashes = np.concatenate([_hashes(batch) for batch in stored])
            numbers = np.arange(len(hashes), dtype=np.int32)
        else:
            names = sorted(set(wanted))
            hashes, numbers = _hashes(names), _numbers(stored, names)
            self.missing = tuple(names[place] for place in np.flatnonzero(numbers == ABSENT).tolist())
        order = np.argsort(hashes)
        hashes, numbers = hashes[order], numbers[order]
        if (hashes[1:] == hashes[:-1]).any():  # once in a hundred thousand stores of ten million clips
            raise ValueError("two clips have the same hash in this process; start it again")
        self._hashes, self._numbers = hashes[numbers != ABSENT], numbers[numbers != ABSENT]

    def find(self, clip_ids: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The numbers of these clips, and which of them are stored: the number of another clip is none."""
        hashes = _hashes(clip_ids)
        if not len(self._hashes):
            return np.full(len(hashes), ABSENT, np.int32), np.zeros(len(hashes), bool)
        places = self._hashes.searchsorted(hashes)
        return self._numbers.take(places, mode="clip"), self._hashes.take(places, mode="clip") == hashes


def _hashes(names: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, names), np.int64, len(names))


def _numbers(stored: Iterable[list[str]], names: Sequence[str]) -> NDArray[np.int32]:
    """The number of each of these sorted names, or ABSENT; one batch of the stored names is in memory at a time."""
    numbers = np.full(len(names), ABSENT, np.int32)
    start = 0
    for batch in stored:
        low, high = bisect_left(names, batch[0]), bisect_right(names, batch[-1])
        place = {name: number for number, name in enumerate(batch, start)}
        numbers[low:high] = [place.get(name, ABSENT) for name in names[low:high]]
        start += len(batch)
    return numbers
