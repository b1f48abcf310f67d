"""Reads a live sound in a thread, so that the sound is read on while a network computes, and a wait can be ended."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from workloads.runtime.background import in_background

LOOK_EVERY_S = 0.1  # for a request to stop
# For a block that is being decoded or resampled: a process that exits meanwhile is aborted by what computes it. A read
# that waits for more is left behind.
LAST_BLOCK_S = 2.0
Item = TypeVar("Item")


def wait_for(value: Callable[[], Item], *, stopped: Callable[[], bool]) -> Item | None:
    """What `value()` returns; None where `stopped()` is true first, while a daemon thread may wait on."""
    return next(read_live((value() for _ in range(1)), stopped=stopped, most=1), None)


def read_live(blocks: Iterable[Item], *, stopped: Callable[[], bool], most: int) -> Iterator[Item]:
    """The blocks, of which up to `most` are read before they are asked for; ends early where `stopped()` is true.

    `blocks` is iterated in a daemon thread, which a read that never returns keeps; what it raises is raised here.
    """
    waiting: queue.Queue[Item | BaseException | None] = queue.Queue(most)

    def put(item: Item | BaseException | None, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                return waiting.put(item, timeout=LOOK_EVERY_S)
            except queue.Full:
                continue

    def read(ended: threading.Event) -> None:
        try:
            for block in blocks:
                put(block, ended)
                if ended.is_set():
                    return
        except BaseException as error:  # raised in the thread that asks
            put(error, ended)
        put(None, ended)

    with in_background(read, name="sound", wait_s=LAST_BLOCK_S):
        while not stopped():
            try:
                item = waiting.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
