"""The seconds in which data-parallel workers exchange gradients: bytes and messages of ring all-reduces.

A ring of N workers sums B bytes in 2 (N - 1) rounds in each of which every worker sends B / N bytes to the next one
(Patarasu and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009):

    seconds = 2 (N - 1) (latency + B / N / bandwidth)

Nothing is assumed to be hidden behind the backward pass, so this is an upper bound where DistributedDataParallel
overlaps the two.
"""

from dataclasses import dataclass
from math import ceil

from cluster.spec_speed import Speed
from workloads.config.recipe import Recipe
from workloads.distill.schedule import Phase
from workloads.models.size import Size

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes of gradients that DDP exchanges in one call: its defaults
GRADIENT_BYTES = 4  # of a parameter: weights and gradients are fp32, whatever train.precision says
GBIT = 1e9 / 8  # bytes


@dataclass(frozen=True)
class Traffic:
    """What the workers exchange in one step."""

    num_bytes: int
    calls: int  # of all-reduce

    def seconds(self, workers: int, *, bandwidth: float, latency: float) -> float:
        """Seconds of the step's calls, one after the other; `bandwidth` in bytes per second, `latency` in seconds."""
        rounds = 2 * (workers - 1)
        return rounds * (self.calls * latency + self.num_bytes / workers / bandwidth)


def step_traffic(recipe: Recipe, phase: Phase, sizes: dict[str, Size]) -> Traffic:
    """What is exchanged in one step of a phase.

    Of each student its gradients, in DDP's buckets, and its buffers, nearly all of them batch norm's statistics; in two
    more calls without many bytes the losses, and whether to stop. Projections of edges that carry embeddings, and
    metrics every `train.log_every` steps, are not counted: they are small.
    """
    gradients = [GRADIENT_BYTES * sizes[name].params for name in phase.trains]
    buffers = sum(max(0, sizes[name].weight_bytes - GRADIENT_BYTES * sizes[name].params) for name in phase.trains)
    if recipe.train.shards == 1:  # then batch norm's statistics are those of the one shard
        buffers = 0
    calls = sum(1 + max(0, ceil((size - FIRST_BUCKET) / BUCKET)) for size in gradients) + (buffers > 0) + 2
    return Traffic(sum(gradients) + buffers, calls)


def ring_bandwidth(speed: Speed, *, nodes: int) -> float:
    """Bytes per second from one worker of the ring to the next, over the slowest of its links.

    A ring crosses each node's network once in each direction, however many workers the node has.
    """
    return GBIT * (speed.local_gbps if nodes == 1 else min(speed.local_gbps, speed.network_gbps))
