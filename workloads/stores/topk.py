"""The k largest values of a row, and their tags in the fewest bytes of a fixed number.

The tags of a row are a set, so they are stored in ascending order by Elias-Fano coding: of each number its `low` bits
as they are, and the rest in unary, which takes 17 bytes for 20 of 527 tags (10 bits each would take 25; the 20 values,
16 bits each, take 40).

Axes: N rows, C tags, J kept tags of a row, Y bytes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TopK(NamedTuple):
    """The largest values of rows: their tags and the values, in the same order, which is free."""

    tags: NDArray[np.integer]  # (..., J)
    values: NDArray[np.floating]  # (..., J)


def select_topk(values_NC: NDArray[np.float16], k: int) -> TopK:
    """The k largest values of each row, of equal ones those of the first tags; tags ascending.

    A function of the row alone: chosen by one number for each value that orders by value, then by tag.
    """
    num_tags = values_NC.shape[-1]
    bits = values_NC.view(np.int16).astype(np.int64)
    order = np.where(bits < 0, -(bits & 0x7FFF), bits)  # -0 and 0 are equal, as they are in comparisons
    rank = order * num_tags - np.arange(num_tags)
    chosen = np.argpartition(rank, num_tags - k, axis=-1)[..., num_tags - k :]
    tags = np.sort(chosen, axis=-1)
    return TopK(tags, np.take_along_axis(values_NC, tags, axis=-1))


class TagCode:
    """Sets of k of `num_tags` tags as `size` bytes each."""

    def __init__(self, k: int, num_tags: int) -> None:
        self.k = k
        self.num_tags = num_tags
        self.low = max(0, (num_tags // k).bit_length() - 1)  # bits of a number that are stored as they are
        self._high_bits = k + ((num_tags - 1) >> self.low)
        self.size = -(-(k * self.low + self._high_bits) // 8)
        self._steps = np.arange(k)

    def encode(self, tags_NJ: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Bytes bytes_NY; each row of `tags_NJ` ascends and holds numbers of tags, each once."""
        assert ((tags_NJ >= 0) & (tags_NJ < self.num_tags)).all(), "a tag that does not exist"
        assert (np.diff(tags_NJ, axis=-1) > 0).all(), "tags that do not ascend"
        bits = np.zeros((len(tags_NJ), 8 * self.size), np.uint8)
        low = tags_NJ[..., None] >> np.arange(self.low) & 1
        bits[:, : self.k * self.low] = low.reshape(len(tags_NJ), -1)
        high = (tags_NJ >> self.low) + self._steps + self.k * self.low
        np.put_along_axis(bits, high, 1, axis=1)
        return np.packbits(bits, axis=1, bitorder="little")

    def decode(self, bytes_NY: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The tags tags_NJ, ascending; ValueError where a row holds no such set."""
        rows, split = len(bytes_NY), self.k * self.low
        bits = np.unpackbits(bytes_NY, axis=1, bitorder="little")
        ones = np.flatnonzero(bits[:, split : split + self._high_bits])
        if len(ones) != rows * self.k:
            raise ValueError(f"a row does not hold {self.k} tags")
        tags = ones.reshape(rows, self.k)
        tags -= np.arange(0, rows * self._high_bits, self._high_bits)[:, None] + self._steps
        tags <<= self.low
        if self.low:
            low = np.packbits(bits[:, :split].reshape(rows, self.k, self.low), axis=-1, bitorder="little")
            for number in range(low.shape[-1]):
                tags |= low[..., number].astype(np.int64) << (8 * number)
        return tags

    def is_sound(self, bytes_NY: NDArray[np.uint8]) -> bool:
        """Whether every row holds k tags, ascending, each once."""
        try:
            tags = self.decode(bytes_NY)
        except ValueError:
            return False
        return bool((np.diff(tags, axis=1) > 0).all() and (tags >= 0).all() and (tags < self.num_tags).all())
