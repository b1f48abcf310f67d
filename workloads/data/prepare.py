"""A run's data, ready to train on: clips read, decoded once, the broken ones set aside, the rest cut into splits."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workloads.config.recipe import Recipe
from workloads.data.cache import Broken, ClipCache, check_share
from workloads.data.clips import Dataset, Splits, split
from workloads.data.manifest import read_dataset
from workloads.runtime.opener import Opener


@dataclass(frozen=True)
class PreparedData:
    """Dataset (without its broken clips), splits, and the cache that holds every clip at the run's rate."""

    recipe: Recipe
    dataset: Dataset
    splits: Splits
    cache: ClipCache
    broken: tuple[Broken, ...]

    def summary(self) -> dict[str, Any]:
        """What the report says about the data."""
        return {
            "fingerprint": self.dataset.fingerprint(),
            "tags": list(self.dataset.tags),
            "labels": self.dataset.labels,
            "clips": {name: len(getattr(self.splits, name)) for name in ("train", "val", "test")},
            "quarantined": [vars(broken) for broken in self.broken],
        }


def prepare(recipe: Recipe, files: Opener, *, rate: int | None = None) -> PreparedData:
    """Read and decode the recipe's data set, at the rate its models need unless another is given.

    Raises ValueError for metadata that cannot be read, an unknown test fold, or too many broken clips.
    """
    data = recipe.data
    dataset = read_dataset(data, files)
    cache = ClipCache(Path(data.cache).expanduser(), rate=rate or recipe.rate, limit_gb=data.cache_gb)
    broken = cache.prepare(dataset.clips, data, files)
    check_share(broken, len(dataset.clips), data.max_broken_share)
    lost = {entry.clip_id for entry in broken}
    dataset = replace(dataset, clips=tuple(clip for clip in dataset.clips if clip.clip_id not in lost))
    return PreparedData(recipe, dataset, split(dataset, data), cache, tuple(broken))
