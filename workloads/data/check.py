"""What is checked of a data set before anything starts: from its metadata, and from what was decoded here before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from workloads.config.data import COMPUTED
from workloads.config.recipe import Recipe, Train
from workloads.data.cache import ClipCache
from workloads.data.clips import Dataset
from workloads.data.decoded import DecodedClip
from workloads.data.manifest import read_dataset
from workloads.data.packed_clips import open_pack
from workloads.data.splits import require_full_batch, require_labels, require_scorable, require_two_tags, split
from workloads.data.unscored import require_no_scores
from workloads.data.warnings import data_warnings
from workloads.runtime.opener import Opener


def has_training_labels(recipe: Recipe, files: Opener, *, store_tags: tuple[str, ...]) -> bool:
    """Whether any label of a training clip is known, by the metadata alone; raises as `read_dataset` and `split`.

    ValueError too where no label of any clip is, and the recipe needs scores.
    """
    dataset = read_dataset(recipe.data, files, model_tags=store_tags, tags_of="store")
    if not dataset.has_labels:
        require_no_scores(recipe)
    return any(dataset.clips_per_tag(split(dataset, recipe.data).train)[1])


def check_data(
    recipe: Recipe,
    files: Opener,
    *,
    slices: Sequence[int],
    test: bool,
    train: Train,
    learners: Sequence[str],
    store_tags: tuple[str, ...] = (),
    search: bool = False,
) -> list[str]:
    """Check the split for each of these validation slices, and the test part with `test`; returns warnings.

    Raises ValueError for mistakes in the metadata, single labels of one tag, folds, parts that cannot be scored, too
    few training clips for a batch of `train`, none with a label where `learners` are models that learn from labels, and
    no label of any clip where the recipe, or a `search`, needs scores. `store_tags` are those of the stores that teach
    (`check_stores`). Warnings about the sound are given only where its clips are decoded on this machine: nothing is
    decoded here.
    """
    data, dataset = recipe.data, read_dataset(recipe.data, files, model_tags=store_tags, tags_of="store")
    require_two_tags(dataset)
    if not dataset.has_labels:
        require_no_scores(recipe, search=search)
    if dataset.val_fold is not None and any(slices):
        raise ValueError(
            f"data.val_slice = {max(slices)}: the data set names its validation clips, which are one slice: "
            "--set data.val_slice=0; a search has search.slices = 1 then, and --no-finals"
        )
    for number in slices:
        sliced = replace(data, val_slice=number)
        splits = split(dataset, sliced)
        require_scorable(dataset, splits, sliced, test=test)
        require_full_batch(len(splits.train), train)
        require_labels(dataset, splits, learners)
    return data_warnings(dataset, split(dataset, data), _decoded_before(dataset, recipe, files), recipe)


def _decoded_before(dataset: Dataset, recipe: Recipe, files: Opener) -> Mapping[str, DecodedClip]:
    """What is known of the clips without decoding any; nothing of those on a store, which the workers ask."""
    data = recipe.data
    if dataset.packed:
        return open_pack(dataset.packed, data, files, rate=recipe.rate).decoded()
    if "://" in data.root or data.format in COMPUTED:
        return {}
    cache = ClipCache(Path(data.cache).expanduser(), rate=recipe.rate, limit_gb=data.cache_gb)
    return cache.decoded_before(dataset.clips, data, files)
