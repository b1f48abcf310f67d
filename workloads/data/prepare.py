"""The data of a run: metadata read, clips decoded and cached, unusable clips quarantined, the others split."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workloads.config.recipe import Recipe
from workloads.data.cache import ClipCache, QuarantinedClip
from workloads.data.clip_store import ClipStore
from workloads.data.clips import Dataset
from workloads.data.manifest import read_dataset
from workloads.data.packed_clips import open_pack
from workloads.data.quarantine import check_quarantined_share
from workloads.data.splits import Splits, require_two_tags, split
from workloads.data.statistics import PARTS, durations, fold_numbers, part_folds, rates, tag_counts
from workloads.data.warnings import data_warnings
from workloads.runtime.opener import Opener


@dataclass(frozen=True)
class PreparedData:
    """Dataset (without its quarantined clips), splits, and the store that holds every clip at the run's rate."""

    recipe: Recipe
    dataset: Dataset
    splits: Splits
    cache: ClipStore
    quarantined: tuple[QuarantinedClip, ...]

    def summary(self) -> dict[str, Any]:
        """The fields of the event log's `data` record: numbers for each tag, none for each clip."""
        parts = {name: getattr(self.splits, name) for name in PARTS}
        counts = {name: self.dataset.clips_per_tag(clips) for name, clips in parts.items()}
        in_fold = Counter((clip.fold, name) for name, clips in parts.items() for clip in clips)
        return {
            "fingerprint": self.dataset.fingerprint(),
            "tags": list(self.dataset.tags),
            "labels": self.dataset.labels,
            "clips": {name: len(clips) for name, clips in parts.items()},
            "unlabelled": sum(not clip.labelled for clip in self.splits.train),  # of the training clips
            "left_out": len(self.splits.left_out),
            "clips_per_tag": {name: have for name, (have, _) in counts.items()},
            "known_per_tag": {name: known for name, (_, known) in counts.items()} if self._partly_labelled else None,
            "folds": {str(fold): {name: in_fold[fold, name] for name in PARTS} for fold in fold_numbers(self.dataset)},
            "rate": self.cache.rate,
            "clip_seconds": self.recipe.data.clip_seconds,
            "durations": asdict(durations(self.cache.decoded().values(), self.recipe.data.clip_seconds)),
            "quarantined": [vars(clip) for clip in self.quarantined],
            "mended": [asdict(clip) for clip in self.cache.mended()],
            "warnings": data_warnings(self.dataset, self.splits, self.cache.decoded(), self.recipe),
        }

    def statistics(self) -> dict[str, Any]:
        """What `antiphon data check` prints of the usable clips beside the summary: more of rates, tags and folds."""
        return {
            "rates": rates(self.cache.decoded().values()),
            "part_folds": part_folds(self.splits),
            "untagged": sum(clip.labelled and not clip.tags for clip in self.dataset.clips),
            "tags": {tag: asdict(count) for tag, count in tag_counts(self.dataset, self.splits).items()},
        }

    @property
    def _partly_labelled(self) -> bool:
        return any(clip.absent is not None or not clip.labelled for clip in (*self.dataset.clips, *self.splits.train))


def prepare(
    recipe: Recipe, files: Opener, *, rate: int | None = None, model_tags: tuple[str, ...] = (), tags_of: str = "tagger"
) -> PreparedData:
    """Read and decode the recipe's data set, at the rate its models need unless another is given; of a packed one
    nothing is decoded.

    `model_tags` are those of a model that is scored on it, or of a store that teaches (`read_dataset`). Raises
    ValueError for metadata that cannot be read, single labels of one tag, an unknown test fold, or too many quarantined
    clips.
    """
    data = recipe.data
    dataset = read_dataset(data, files, model_tags=model_tags, tags_of=tags_of)
    require_two_tags(dataset)
    if dataset.packed:
        store = open_pack(dataset.packed, data, files, rate=rate or recipe.rate)
        store.require_decoder(dataset.clips)
        left_out = tuple(QuarantinedClip(**fields) for fields in dataset.packed.manifest["quarantined"])
        return PreparedData(recipe, dataset, split(dataset, data), store, left_out)
    cache = ClipCache(Path(data.cache).expanduser(), rate=rate or recipe.rate, limit_gb=data.cache_gb)
    quarantined = cache.prepare(dataset.clips, data, files)
    check_quarantined_share(quarantined, len(dataset.clips), data, files)
    unusable = {clip.clip_id for clip in quarantined}
    dataset = replace(dataset, clips=tuple(clip for clip in dataset.clips if clip.clip_id not in unusable))
    return PreparedData(recipe, dataset, split(dataset, data), cache, tuple(quarantined))
