"""Which models a worker holds, which shards of the data it trains them on, and the workers that it exchanges with.

Colocated, every worker holds all models, and the shards are divided among all of them. Split, the models are divided
into groups first: of G groups worker r holds those of group r modulo G, and all G workers with the same quotient have
the same shards, so that those next to each other, which mostly share a node, exchange what their models say.

The rank of a worker among all decides nothing by itself, except that rank 0 writes checkpoints and reports.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workloads.config.data_ranks import num_data_ranks
from workloads.config.recipe import Recipe
from workloads.runtime.session import Session


@dataclass(frozen=True)
class WorkerGroup:
    """Workers that share something, and which of them this one is. Every one of them makes the same calls."""

    rank: int = 0  # within the group
    size: int = 1
    process_group: Any = None  # torch's; None: that of all workers

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers of the group, in its order; for small Python objects."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values

    def add_up(self, tensor: Tensor) -> None:
        """Set a tensor to its sum over the workers of the group."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.process_group)


@dataclass(frozen=True)
class Placement:
    """Where one worker stands: made once, before the first step, by `place`."""

    local_models: tuple[str, ...]  # that this worker holds
    data_rank: int  # which part of the shards it trains them on, ...
    data_ranks: int  # ... of how many
    groups: Mapping[str, Any]  # local model -> torch's process group for its gradients; None: it is on one worker
    workers: WorkerGroup  # those with the same models, by data rank
    everyone: WorkerGroup  # all workers of the run
    exchange: Any = None  # torch's process group of the workers with the same shards; None: they are this one alone
    places: Mapping[str, int] | None = None  # split: model -> number of its group

    def holds(self, name: str) -> bool:
        return name in self.local_models

    def shards(self, number: int) -> range:
        """Which of so many shards of a batch are this worker's."""
        own = number // self.data_ranks
        return range(self.data_rank * own, (self.data_rank + 1) * own)

    def holds_any(self, names: Iterable[str]) -> bool:
        """Whether this worker has to do with a phase that needs these models: else it needs no clips."""
        return any(map(self.holds, names))

    def partner(self, name: str) -> int:
        """The rank among all of the worker that holds a model and has this worker's shards."""
        return self.everyone.rank if self.places is None else self.data_rank * self._num_groups + self.places[name]

    def first_holder(self, name: str) -> int:
        """The rank among all of the first worker that holds a model."""
        return 0 if self.places is None else self.places[name]

    def bring(self, name: str, value: Any) -> Any:
        """On rank 0 the `value` that the first worker which holds a model passes; None elsewhere.

        Both call it, for the same models in the same order; for the other workers it does nothing. Objects with tensors
        may be large: those of one model are in memory at a time.
        """
        holder = self.first_holder(name)
        if self.everyone.rank == holder == 0:
            return value
        if self.everyone.rank == holder:
            dist.send_object_list([value], dst=0, group=self.exchange)
        elif self.everyone.rank == 0:
            box: list[Any] = [None]
            dist.recv_object_list(box, src=holder, group=self.exchange)
            return box[0]
        return None

    @property
    def is_first_holder(self) -> bool:
        """Whether this worker is the first of those with its models."""
        return self.data_rank == 0

    @property
    def _num_groups(self) -> int:
        return self.everyone.size // self.data_ranks


def place(recipe: Recipe, session: Session) -> Placement:
    """The placement of this worker. A collective call: torch makes process groups, on all workers in the same order.

    Raises ValueError as `num_data_ranks` does.
    """
    parts = num_data_ranks(recipe, session.world_size)
    everyone = WorkerGroup(session.rank, session.world_size)
    if recipe.placement != "split":
        groups = {name: dist.new_group() if session.world_size > 1 else None for name in recipe.models}
        return Placement(tuple(recipe.models), session.rank, parts, groups, everyone, everyone)
    placement = _split(recipe.group_models(), everyone, parts)
    if session.device.type == "cuda":  # NCCL wants all of a group in its first call, and not all exchange in each phase
        dist.all_reduce(torch.zeros(1, device=session.device), group=placement.exchange)
    return placement


def _split(groups: Sequence[tuple[str, ...]], everyone: WorkerGroup, parts: int) -> Placement:
    data_rank, own_group = divmod(everyone.rank, len(groups))
    gradients: dict[str, Any] = {}
    workers = WorkerGroup(data_rank, parts)
    for number, models in enumerate(groups):
        ranks = [part * len(groups) + number for part in range(parts)]
        made = {name: dist.new_group(ranks) if parts > 1 else None for name in models}
        all_of_it = dist.new_group(ranks) if parts > 1 else None
        if number == own_group:
            gradients, workers = made, WorkerGroup(data_rank, parts, all_of_it)
    same_shards = [dist.new_group(range(part * len(groups), (part + 1) * len(groups))) for part in range(parts)]
    places = {name: number for number, models in enumerate(groups) for name in models}
    own = groups[own_group]
    return Placement(own, data_rank, parts, gradients, workers, everyone, same_shards[data_rank], places)
