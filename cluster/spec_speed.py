"""What nodes and their storage reach, and what they cost: numbers that `antiphon plan --cluster` reckons with.

Nothing of it is rendered. The defaults are round numbers, not measurements of anybody's cluster.
"""

import math
from dataclasses import dataclass, fields

from cluster.spec_table import Table


@dataclass(frozen=True, kw_only=True)
class Speed(Table):
    """What a node of a group reaches."""

    tflops: float = 0.0  # TFLOP/s that one worker reaches in training; 0: --tflops says it
    optimizer_ms: float = 5.0  # of a step, whatever its number of clips: optimizer, averages, records
    spread: float = 0.05  # of a worker's time from step to step: standard deviation over mean
    load_ms: float = 1.0  # processor time in which a clip is read and cut
    decode_ms: float = 15.0  # processor time in which a file is decoded and resampled
    disk_mb_s: float = 500.0  # MB/s of the disk with the clips and checkpoints, of all workers of the node
    network_gbps: float = 10.0  # Gbit/s of the node, in each direction
    local_gbps: float = 100.0  # Gbit/s between two workers of one node
    latency_us: float = 50.0  # microseconds from one worker to the next
    start_s: float = 60.0  # seconds from the command to the first step, without clips

    def __post_init__(self) -> None:
        may_be_zero = ("tflops", "optimizer_ms", "spread", "load_ms", "decode_ms", "latency_us", "start_s")
        for name in (entry.name for entry in fields(self)):
            value = getattr(self, name)
            if name in may_be_zero:
                self._require(0 <= value < math.inf, name, "must be 0 or more")
            else:
                self._require(0 < value < math.inf, name, "must be above 0")


@dataclass(frozen=True, kw_only=True)
class StorageSpeed(Table):
    """What the store of the clips and checkpoints serves to all nodes together."""

    requests_per_second: float = 5500.0  # reads of one prefix; AWS promises so many of S3
    prefixes: int = 1  # over which the clips are spread
    request_ms: float = 30.0  # from a request to its answer
    gbps: float = 100.0  # Gbit/s

    def __post_init__(self) -> None:
        self._require(0 < self.requests_per_second < math.inf, "requests_per_second", "must be above 0")
        self._require(self.prefixes >= 1, "prefixes", "must be 1 or more")
        self._require(0 <= self.request_ms < math.inf, "request_ms", "must be 0 or more")
        self._require(0 < self.gbps < math.inf, "gbps", "must be above 0")
