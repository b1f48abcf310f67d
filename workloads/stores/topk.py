"""The k largest values of a row, and their tags in the fewest bytes of a fixed number.

The tags of a row are a set, so they are stored in ascending order by Elias-Fano coding: of each number its `low` bits
as they are, and the rest in unary, which takes 17 bytes for 20 of 527 tags (10 bits each would take 25; the 20 values,
16 bits each, take 40).

Axes: N rows, C tags, J kept tags of a row, Y bytes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LOW_BITS = (0, 1, 2, 4, 8)  # possible numbers of bits that are stored as they are


class TopK(NamedTuple):
    """The largest values of rows: their tags and the values, in the same order, which is free."""

    tags: NDArray[np.integer]  # (..., J)
    values: NDArray[np.floating]  # (..., J)


def select_topk(values_NC: NDArray[np.float16], k: int) -> NDArray[np.int64]:
    """The tags of the k largest values of each row, of equal ones the first tags, ascending.

    A function of the row alone: chosen by one number for each value that orders by value, then by tag.
    """
    num_tags = values_NC.shape[-1]
    bits = values_NC.view(np.int16).astype(np.int64)
    order = np.where(bits < 0, -(bits & 0x7FFF), bits)  # -0 and 0 are equal, as they are in comparisons
    rank = order * num_tags - np.arange(num_tags)
    chosen = np.argpartition(rank, num_tags - k, axis=-1)[..., num_tags - k :]
    return np.sort(chosen, axis=-1)


class TagCode:
    """Sets of k of `num_tags` tags as `size` bytes each: first the low bits of all k, then the rest in unary."""

    def __init__(self, k: int, num_tags: int) -> None:
        self.k = k
        self.num_tags = num_tags
        # A byte holds the low bits of whole tags, so that they are looked up in a table.
        self.low = min(LOW_BITS, key=lambda low: (k * low + 7) // 8 + self._high_size(low))
        self._split = (k * self.low + 7) // 8
        self.size = self._split + self._high_size(self.low)
        self._offsets = np.empty((0, k), np.int64)
        self._low_of_byte = _low_bits_of_bytes(self.low) if self.low else None
        self._low_type = np.dtype(f"i{self.low or 8}")

    def _high_size(self, low: int) -> int:
        """Bytes of the unary part: a one for each tag, and a zero for each step of 2**low from tag to tag."""
        return (self.k + ((self.num_tags - 1) >> low) + 7) // 8

    def encode(self, tags_NJ: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Bytes bytes_NY; each row of `tags_NJ` ascends and holds numbers of tags, each once."""
        assert ((tags_NJ >= 0) & (tags_NJ < self.num_tags)).all(), "a tag that does not exist"
        assert (np.diff(tags_NJ, axis=-1) > 0).all(), "tags that do not ascend"
        bits = np.zeros((len(tags_NJ), 8 * self.size), np.uint8)
        low = tags_NJ[..., None] >> np.arange(self.low) & 1
        bits[:, : self.k * self.low] = low.reshape(len(tags_NJ), -1)
        high = (tags_NJ >> self.low) + np.arange(self.k) + 8 * self._split
        np.put_along_axis(bits, high, 1, axis=1)
        return np.packbits(bits, axis=1, bitorder="little")

    def decode(self, bytes_NY: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The tags tags_NJ, ascending; ValueError where a row holds no such set."""
        rows = len(bytes_NY)
        bits = np.unpackbits(bytes_NY[:, self._split :], axis=1, bitorder="little")
        ones = bits.ravel().view(bool).nonzero()[0]  # as booleans, of which numpy finds the true ones fastest
        if len(ones) != rows * self.k:
            raise ValueError(f"a row does not hold {self.k} tags")
        if len(self._offsets) < rows:
            self._offsets = np.arange(0, rows * bits.shape[1], bits.shape[1])[:, None] + np.arange(self.k)
        tags = ones.reshape(rows, self.k)
        tags -= self._offsets[:rows]
        if self._low_of_byte is not None:
            tags <<= self.low
            low = self._low_of_byte.take(bytes_NY[:, : self._split]).view(self._low_type)
            tags |= low[:, : self.k].astype(np.int64)
        return tags

    def is_sound(self, bytes_NY: NDArray[np.uint8]) -> bool:
        """Whether every row holds k tags, ascending, each once."""
        try:
            tags = self.decode(bytes_NY)
        except ValueError:
            return False
        return bool((np.diff(tags, axis=1) > 0).all() and (tags >= 0).all() and (tags < self.num_tags).all())


def _low_bits_of_bytes(low: int) -> NDArray[np.int64]:
    """For each byte the 8 / low numbers of `low` bits that it holds, as integers of `low` bytes side by side."""
    shifts = np.arange(0, 8, low)
    numbers = np.arange(256)[:, None] >> shifts & (2**low - 1)
    return numbers.astype(f"i{low}").view(np.int64)[:, 0]
