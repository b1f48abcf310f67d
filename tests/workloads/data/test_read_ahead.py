"""Crops that are read in a thread ahead of the one that works on them."""

import threading
from typing import Any

import numpy as np
import pytest

from workloads.data.loading import CropsRead, ShardRequest
from workloads.data.read_ahead import read_ahead
from workloads.data.shard import ViewKey

AHEAD = 2


class Numbers:
    """Reads the numbers that clips are; says which are being read, and fails at one of them."""

    shape = (4, 3)

    def __init__(self, fails_at: int = -1) -> None:
        self.fails_at, self.began = fails_at, list[int]()
        self.reads = [threading.Event() for _ in range(10)]

    def read(self, request: ShardRequest, x_BT: Any) -> CropsRead:
        first = int(request.clips[0])
        self.began.append(first)
        self.reads[first].set()
        if first == self.fails_at:
            raise OSError(f"number {first} cannot be read")
        x_BT[:] = np.array(request.clips, np.int16)[:, None]
        return CropsRead((3,) * len(request.keys), (), {})


def requests(count: int) -> list[ShardRequest]:
    """Shards of one clip, but for the last, which has two."""
    numbers = [(number,) for number in range(count - 1)] + [(count - 1, 0)]
    return [ShardRequest(tuple(ViewKey(str(one), 0, 0) for one in clips), clips) for clips in numbers]


def test_crops_come_in_order_and_few_are_read_ahead():
    numbers: Any = Numbers()
    for place, crops in enumerate(read_ahead(numbers, requests(6), ahead=AHEAD, threads=1)):
        assert crops.x_BT.tolist() == ([[place] * 3] if place < 5 else [[5] * 3, [0] * 3])
        nexts = range(place + 1, min(place + 1 + AHEAD, 6))
        assert all(numbers.reads[following].wait(timeout=60) for following in nexts), "while nobody asks for them"
        assert numbers.began == list(range(min(place + 1 + AHEAD, 6))), "and no others"


def test_an_error_is_raised_where_its_crops_are_asked_for_and_no_more_is_read():
    numbers: Any = Numbers(fails_at=2)
    read = read_ahead(numbers, requests(9), ahead=AHEAD, threads=1)
    assert [next(read).x_BT[0, 0].item() for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="number 2 cannot be read"):
        next(read)
    assert set(numbers.began) <= set(range(2 + 1 + AHEAD))
