"""How many workers a run has: a number, or a range within which it follows the cluster. Imports no Ray."""

import re
from dataclasses import dataclass

from workloads.config.data_ranks import num_data_ranks
from workloads.config.recipe import Recipe

COUNT = re.compile(r"(?P<least>\d+)(-(?P<most>\d+))?")
MOST = 100_000


@dataclass(frozen=True)
class WorkerCount:
    """From `least` to `most` workers, as many as the cluster holds of the numbers that divide the recipe's shards."""

    least: int = 1
    most: int = 1

    @property
    def elastic(self) -> bool:
        """Whether the number may change while the run goes on."""
        return self.least < self.most

    def sizes(self, shards: int) -> tuple[int, ...]:
        """The numbers of workers that the shards of the global batch divide among, in order; empty where none does."""
        return tuple(size for size in range(self.least, min(self.most, shards) + 1) if shards % size == 0)

    def bounds(self, shards: int) -> tuple[int, int]:
        """The smallest and the largest number of workers that a run with so many shards has."""
        if not self.elastic:
            return self.least, self.least
        sizes = self.sizes(shards)
        return sizes[0], sizes[-1]

    def __str__(self) -> str:
        return f"{self.least}-{self.most}" if self.elastic else str(self.least)


ONE_WORKER = WorkerCount()


def parse_workers(text: str) -> WorkerCount:
    """ "4" or "2-8"; ValueError for anything else."""
    match = COUNT.fullmatch(text.strip())
    if not match:
        raise ValueError(f"--workers {text!r}: must be a number of workers (4), or a range of them (2-8)")
    least = int(match["least"])
    count = WorkerCount(least, int(match["most"] or least))
    if count.least < 1 or count.most > MOST:
        raise ValueError(f"--workers {text}: must be 1 or more, and at most {MOST:,}")
    if count.least > count.most:
        raise ValueError(f"--workers {text}: the first number must not be above the second; give {count.most}-{least}")
    return count


def require_workers_divide(recipe: Recipe, workers: WorkerCount) -> None:
    """Raise ValueError where the shards of the global batch divide among none of these numbers of workers.

    A range is for models that are all in each worker, on nodes that Ray may fill one after the other.
    """
    if not workers.elastic:
        num_data_ranks(recipe, workers.least)
        return
    shards = recipe.train.shards
    if not workers.sizes(shards):
        possible = ", ".join(str(size) for size in WorkerCount(1, shards).sizes(shards))
        raise ValueError(
            f"--workers {workers}: train.shards = {shards} divides among none of these numbers, but among {possible}; "
            f"change one of the two (the global batch is shards x shard_size clips)"
        )
    if recipe.placement != "colocated":
        raise ValueError(
            f"--workers {workers}: placement = {recipe.placement!r} needs one number of workers; give one, or --set "
            "placement=colocated"
        )
    if recipe.resources.placement == "STRICT_SPREAD":
        raise ValueError(
            f"--workers {workers}: Ray reserves nodes for a range as densely as it can, which resources.placement = "
            "'STRICT_SPREAD' forbids; give one number, or let a worker take all CPUs or GPUs of a node"
        )
