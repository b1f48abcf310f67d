"""What is checked of a data set before anything starts: from its metadata, and from what was decoded here before."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workloads.config.recipe import Recipe, Train
from workloads.data.cache import ClipCache
from workloads.data.clips import require_full_batch, require_labels, require_scorable, split
from workloads.data.manifest import read_dataset
from workloads.data.warnings import data_warnings
from workloads.runtime.opener import Opener


def has_training_labels(recipe: Recipe, files: Opener) -> bool:
    """Whether any label of a training clip is known, by the metadata alone; raises as `read_dataset` and `split`."""
    dataset = read_dataset(recipe.data, files)
    return any(dataset.clips_per_tag(split(dataset, recipe.data).train)[1])


def check_data(
    recipe: Recipe, files: Opener, *, slices: Sequence[int], test: bool, train: Train, learners: Sequence[str]
) -> list[str]:
    """Check the split for each of these validation slices, and the test part with `test`; returns warnings.

    Raises ValueError for mistakes in the metadata, folds, parts that cannot be scored, too few training clips for a
    batch of `train`, and none with a label where `learners` are models that learn from labels. Warnings about the sound
    are given only where its clips are decoded on this machine: nothing is decoded here.
    """
    data, dataset = recipe.data, read_dataset(recipe.data, files)
    for number in slices:
        sliced = replace(data, val_slice=number)
        splits = split(dataset, sliced)
        require_scorable(dataset, splits, sliced, test=test)
        require_full_batch(len(splits.train), train)
        require_labels(dataset, splits, learners)
    cache = ClipCache(Path(data.cache).expanduser(), rate=recipe.rate, limit_gb=data.cache_gb)
    local = "://" not in data.root  # a store is asked about every clip by the workers only
    decoded = cache.decoded_before(dataset.clips, data, files) if local and data.format != "synthetic" else {}
    return data_warnings(dataset, split(dataset, data), decoded.values(), recipe)
