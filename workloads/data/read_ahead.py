"""Reads the crops of one shard after another in a thread, ahead of the thread that works on them. Knows no models.

For work in which every shard is read once, such as the rows of a store; training loads its shards by `loading.py`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from workloads.data.loading import CropReader, Crops, ShardRequest


def read_ahead(reader: CropReader, requests: Sequence[ShardRequest], *, ahead: int, threads: int) -> Iterator[Crops]:
    """The crops of each request in order, of which at most `ahead` are in memory beside those that were taken last.

    One thread reads, so the reader needs no lock; it decodes with `threads` threads of torch, as the caller does. What
    the reader raises is raised where its crops are asked for. Closing the iterator waits for the crops that are being
    read, and drops the others.
    """

    def read(request: ShardRequest) -> Crops:
        x_BT = np.empty((len(request.keys), reader.shape[1]), np.int16)
        found = reader.read(request, x_BT)
        return Crops(torch.from_numpy(x_BT), found)

    with ThreadPoolExecutor(1, "read-ahead", initializer=torch.set_num_threads, initargs=(threads,)) as thread:
        reading: deque[Future[Crops]] = deque()
        try:
            for request in requests:
                reading.append(thread.submit(read, request))
                if len(reading) > ahead:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
