"""Predicts hours, bottleneck and price of a run on a cluster for several numbers of workers. Trains nothing.

Every term is a formula of numbers that the recipe (`cost.py`), the spec (`cluster/spec_speed.py`) or the user gives:

    run  = start + requests + download + decoding + all steps + scoring + checkpoints
    step = work x stragglers + exchange
    work = compute + teachers + optimizer + reading         with train.loaders = 0
    work = max(compute + teachers + optimizer, reading)     with loader processes, which read ahead

Stores of teacher outputs count in requests and download; reading their rows from memory does not. Not counted: failures
and nodes that are taken away, front ends (a measured `tflops` has them), time in a queue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.spec_nodes import Workers
from cluster.spec_speed import StorageSpeed
from orchestrator.planning.checkpoints import planned_checkpoints
from orchestrator.planning.cost import Cost, learn_and_teach_flops
from orchestrator.planning.exchange import GBIT, ring_bandwidth, step_traffic
from orchestrator.planning.fetching import Source, fetch_seconds, fetch_stores
from orchestrator.planning.stores import StoreCost
from orchestrator.planning.stragglers import straggler_factors
from workloads.config.recipe import Recipe
from workloads.distill.schedule import Phase
from workloads.models.size import Size

TERMS = (  # what a run spends its time on
    "compute",  # forward and backward passes of the students, and scoring
    "teachers",  # forward passes of models that only teach
    "optimizer",
    "reading",  # clips from the node's disk
    "exchange",  # of gradients
    "stragglers",  # waiting for the slowest worker
    "requests",  # to the storage, for clips and for rows of teacher stores
    "download",
    "decoding",
    "checkpoints",
    "start",
)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A group of a spec's nodes, as far as a plan is concerned."""

    group: str
    nodes: Workers
    storage: StorageSpeed
    tflops: float  # of each worker
    per_node: int  # workers
    head_price: float = 0.0  # per hour
    shared_cache: bool = False  # one cache folder for all nodes


@dataclass(frozen=True, kw_only=True)
class Row:
    """The prediction for one number of workers; without hours where it cannot be used, as `note` says."""

    workers: int
    nodes: int
    note: str = ""
    hours: float | None = None
    seconds_per_step: float | None = None  # mean over all steps
    speedup: float | None = None  # over a single worker
    bottleneck: str = ""  # the largest of the terms
    price: float | None = None  # None: the spec has no price of these nodes
    seconds: Mapping[str, float] = field(default_factory=dict)  # of the whole run by TERMS; they add up to the hours


@dataclass(frozen=True)
class ScaleModel:
    """The formulas for one recipe on one cluster."""

    recipe: Recipe
    phases: tuple[Phase, ...]
    sizes: dict[str, Size]
    cost: Cost
    cluster: Cluster
    source: Source
    stores: Sequence[StoreCost] = ()

    def rows(self, workers: Sequence[int]) -> tuple[Row, ...]:
        """The predictions for these numbers of workers, in their order."""
        factors = straggler_factors(workers, spread=self.cluster.nodes.speed.spread)
        alone = sum(self.seconds(1, 1.0)[0].values())
        return tuple(self._row(number, factors[number], alone) for number in workers)

    def seconds(self, workers: int, stragglers: float) -> tuple[dict[str, float], float]:
        """Seconds of the whole run by TERMS, and those of a mean step; `stragglers` is that number of workers' factor.

        The terms add up to the run's seconds: what loader processes read while something longer is computed counts 0,
        and so does what is computed while something longer is read.
        """
        nodes, speed = -(-workers // self.cluster.per_node), self.cluster.nodes.speed
        steps = _total([(phase.steps, self._step(phase, workers, nodes, stragglers)) for phase in self.phases])
        per_step = sum(steps.values()) / self.cost.steps
        fetch = fetch_seconds(
            self.source,
            speed,
            self.cluster.storage,
            workers=workers,
            nodes=nodes,
            shared=self.cluster.shared_cache,
            clips_read=self.cost.clips_read,
        )
        shared, storage = self.cluster.shared_cache, self.cluster.storage
        stores = fetch_stores(self.stores, speed, storage, nodes=nodes, shared=shared)
        once = {"start": speed.start_s, "checkpoints": self._checkpoints(per_step), **vars(fetch)}
        return _total([(1, steps), (1, self._scoring(workers)), (1, once), (1, vars(stores))]), per_step

    def _row(self, workers: int, stragglers: float, alone: float) -> Row:
        nodes, shards = -(-workers // self.cluster.per_node), self.recipe.train.shards
        if shards % workers:
            note = f"does not divide train.shards = {shards}; {largest_divisor(shards, workers)} does"
            return Row(workers=workers, nodes=nodes, note=note)
        if self.recipe.resources.placement == "STRICT_PACK" and nodes > 1:
            return Row(workers=workers, nodes=nodes, note=f"STRICT_PACK: a node holds {self.cluster.per_node}")
        terms, per_step = self.seconds(workers, stragglers)
        group, hours = self.cluster.nodes, sum(terms.values()) / 3600
        return Row(
            workers=workers,
            nodes=nodes,
            note=f"more nodes than workers.{self.cluster.group}.max = {group.max}" if nodes > group.max else "",
            hours=hours,
            seconds_per_step=per_step,
            speedup=alone / (hours * 3600),
            bottleneck=max(TERMS, key=lambda term: terms[term]),
            price=hours * (nodes * group.price_per_hour + self.cluster.head_price) if group.price_per_hour else None,
            seconds=dict(terms),
        )

    def _step(self, phase: Phase, workers: int, nodes: int, stragglers: float) -> dict[str, float]:
        """Seconds of one step of a phase."""
        speed, train = self.cluster.nodes.speed, self.recipe.train
        learn, teach = learn_and_teach_flops(self.recipe, phase, self.sizes)
        rate = workers * self.cluster.tflops * 1e12
        terms = {"compute": learn / rate, "teachers": teach / rate, "optimizer": speed.optimizer_ms / 1000}
        reading = train.batch_size / workers * self._seconds_to_read(min(workers, self.cluster.per_node))
        if not train.loaders:
            terms["reading"] = reading
        elif reading > sum(terms.values()):
            terms = {"reading": reading}
        traffic, bandwidth = step_traffic(self.recipe, phase, self.sizes), ring_bandwidth(speed, nodes=nodes)
        return terms | {
            "stragglers": sum(terms.values()) * (stragglers - 1),
            "exchange": traffic.seconds(workers, bandwidth=bandwidth, latency=speed.latency_us / 1e6),
        }

    def _seconds_to_read(self, sharing: int) -> float:
        """Seconds in which a worker reads one clip, beside others of its node: limited by the disk or its processes.

        Of a pack that holds encoded clips each is decoded when it is read.
        """
        speed = self.cluster.nodes.speed
        decoding = speed.decode_ms if self.source.archives and self.source.encoded else 0.0
        by_processes = (speed.load_ms + decoding) / 1000 / max(1, self.recipe.train.loaders)
        return max(self.cost.clip_bytes * sharing / (speed.disk_mb_s * 1e6), by_processes)

    def _scoring(self, workers: int) -> dict[str, float]:
        """Seconds of validations and final scores, whose batches the workers share."""
        flops = sum(model.score_flops for model in self.cost.models.values())
        clips = self.cost.clips_read - self.recipe.train.batch_size * self.cost.steps
        return {
            "compute": flops / workers / (self.cluster.tflops * 1e12),
            "reading": clips / workers * self._seconds_to_read(min(workers, self.cluster.per_node)),
        }

    def _checkpoints(self, seconds_per_step: float) -> float:
        """Seconds for which training waits for checkpoints.

        The first worker writes each to its disk and uploads it beside training, one after the other; the last upload is
        waited for.
        """
        speed, storage = self.cluster.nodes.speed, self.cluster.storage
        upload = GBIT * min(speed.network_gbps, storage.gbps)
        between = self.recipe.train.checkpoint_every * seconds_per_step
        waited = last = 0.0
        for size, number in planned_checkpoints(self.recipe, self.phases, self.sizes, until=self.cost.steps):
            waited += number * (size / (speed.disk_mb_s * 1e6) + max(0.0, size / upload - between))
            last = size / upload
        return waited + last


def largest_divisor(shards: int, most: int) -> int:
    """The largest number of workers, up to `most`, that can share the shards of a batch evenly."""
    return next(number for number in range(min(most, shards), 0, -1) if shards % number == 0)


def _total(parts: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """The sum by TERMS of parts of the run, each repeated so many times."""
    return {term: sum(times * seconds.get(term, 0.0) for times, seconds in parts) for term in TERMS}
