"""A run's data, ready to train on: clips read, decoded once, the broken ones set aside, the rest cut into splits."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workloads.config.recipe import Recipe
from workloads.data.cache import Broken, ClipCache, check_share
from workloads.data.clips import Corpus, Splits, split
from workloads.data.manifest import read_corpus
from workloads.runtime.opener import Opener


@dataclass(frozen=True)
class Prepared:
    """Corpus (without its broken clips), splits, and the cache that holds every clip at the run's rate."""

    recipe: Recipe
    corpus: Corpus
    splits: Splits
    cache: ClipCache
    broken: tuple[Broken, ...]

    def summary(self) -> dict[str, Any]:
        """What the report says about the data."""
        return {
            "fingerprint": self.corpus.fingerprint(),
            "tags": list(self.corpus.tags),
            "labels": self.corpus.labels,
            "clips": {name: len(getattr(self.splits, name)) for name in ("train", "val", "test")},
            "quarantined": [vars(broken) for broken in self.broken],
        }


def prepare(recipe: Recipe, files: Opener, *, rate: int | None = None) -> Prepared:
    """Read and decode the recipe's data set, at the rate its models need unless another is given.

    Raises ValueError for metadata that cannot be read, an unknown test fold, or too many broken clips.
    """
    data = recipe.data
    corpus = read_corpus(data, files)
    cache = ClipCache(Path(data.cache).expanduser(), rate=rate or recipe.rate, limit_gb=data.cache_gb)
    broken = cache.prepare(corpus.clips, data, files)
    check_share(broken, len(corpus.clips), data.max_broken_share)
    lost = {entry.clip_id for entry in broken}
    corpus = replace(corpus, clips=tuple(clip for clip in corpus.clips if clip.clip_id not in lost))
    return Prepared(recipe, corpus, split(corpus, data), cache, tuple(broken))
