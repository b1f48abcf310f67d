"""Clips, the data set that they form, and its split into train, validation and test. Opens no file.

Axes: N clips of a set, C tags.
"""

import hashlib
import json
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from workloads.config.data import OWN_TEST, OWN_VALIDATION, Data
from workloads.config.recipe import Train
from workloads.data.events import Event
from workloads.data.pack import Pack
from workloads.runtime.rng import keyed_generator, keyed_seed
from workloads.runtime.text import name_some


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: `path` is relative to the data set's root, `source` the recording that it was cut from.

    `absent` are the tags that the clip is known to lack, all tags in neither list are unknown; None: it lacks all
    others. Of a clip that is not labelled nothing is known; it has neither. `events` say when its tags sound; None:
    that is not known.
    """

    clip_id: str
    path: str
    tags: tuple[str, ...]
    fold: int
    source: str
    absent: tuple[str, ...] | None = None
    labelled: bool = True
    events: tuple[Event, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """All clips sorted by clip_id, and the tags in the order of a model's outputs: sorted, or as the model has them."""

    clips: tuple[Clip, ...]
    tags: tuple[str, ...]
    labels: str  # "single" or "multi"
    without_source: int = 0  # clips of which the metadata names no source: each is its own
    folds_assigned: bool = False  # by a hash of the source, since the metadata has no folds
    not_in_data: tuple[str, ...] = ()  # tags of the model that no clip has: with "multi" nobody looked for them
    val_fold: int | None = None  # of a data set that names its validation clips; None: a slice of the training folds
    events_sha256: str = ""  # of the events, where a table says them
    warnings: tuple[str, ...] = ()  # of the reader, about files that are no clips of the set
    packed: Pack | None = field(default=None, compare=False, repr=False)  # where the clips' sounds are, if packed

    def plain_format(self, data: Data) -> str:
        """The value of data.format with which the data set is read where it is not packed."""
        return self.packed.manifest["format"] if self.packed else data.format

    def targets(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """y_NC float32: 1 where clip n has tag c, NaN where that is unknown, else 0; all NaN for an unlabelled clip."""
        column = self.columns
        y_NC = np.zeros((len(clips), len(self.tags)), dtype=np.float32)
        if self.labels == "multi":
            y_NC[:, [column[tag] for tag in self.not_in_data]] = np.nan
        for row, clip in enumerate(clips):
            if clip.absent is not None or not clip.labelled:
                y_NC[row] = np.nan
                y_NC[row, [column[tag] for tag in clip.absent or ()]] = 0
            y_NC[row, [column[tag] for tag in clip.tags]] = 1
        return y_NC

    @cached_property
    def has_labels(self) -> bool:
        """Whether any label of any clip is known; if none is, no clip validates or tests, and nothing is scored."""
        return any(clip.tags or clip.absent or (clip.labelled and clip.absent is None) for clip in self.clips)

    @cached_property
    def columns(self) -> dict[str, int]:
        """The column of each tag."""
        return {tag: index for index, tag in enumerate(self.tags)}

    def clips_per_tag(self, clips: Sequence[Clip]) -> tuple[list[int], list[int]]:
        """For each tag the number of clips that have it, and of those of which it is known whether they do."""
        have = Counter(tag for clip in clips for tag in clip.tags)
        partly = [clip for clip in clips if clip.absent is not None]
        known_partly = Counter(tag for clip in partly for tag in (*clip.tags, *(clip.absent or ())))
        num_whole = sum(clip.labelled for clip in clips) - len(partly)
        unknown = self.not_in_data if self.labels == "multi" else ()
        known = [known_partly[tag] + (0 if tag in unknown else num_whole) for tag in self.tags]
        return [have[tag] for tag in self.tags], known

    def fingerprint(self) -> str:
        """SHA-256 over ids, tags, folds, sources, relative paths, absent tags and which clips are not labelled.

        Does not depend on the root, nor on whether the clips are packed. Computed once.
        """
        return self.packed.manifest["fingerprint"] if self.packed else self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for clip in self.clips:
            fields = [clip.clip_id, clip.tags, clip.fold, clip.source, clip.path, clip.absent]
            fields += [] if clip.labelled else ["unlabelled"]
            digest.update(json.dumps(fields).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """Training clips, validation clips, which may steer a run or a search, and test clips, for the final score only.

    Validation and test clips are labelled; there are none where no label is known. `left_out` are the unlabelled clips
    that are used nowhere.
    """

    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    test: tuple[Clip, ...]
    left_out: tuple[Clip, ...] = ()


def split(dataset: Dataset, data: Data) -> Splits:
    """Split by data.test_fold, then the training folds by data.val_slice; no recording is in two splits.

    A data set that names its validation clips is split by these: they are its `val_fold`.

    With one tag per clip the validation slices are stratified by tag, as far as whole recordings allow. Unlabelled
    clips only train: one of a recording that is tested or validated on is left out, with data.unlabelled = "leave_out"
    every one. Of the labelled training clips data.labelled_share keep their labels. Where no label is known no clip
    validates or tests, and the test fold, if there is one, is left out as well.

    With data.train_folds the clips of further folds are used nowhere, and are not counted.

    Raises ValueError for a fold that does not exist, for a source in the test fold and in others, in the fold that
    validates and in others, or in a training fold and in one that is used nowhere, for more slices than recordings or
    clips of a tag can fill, and with one tag per clip for a tag whose training clips all lose it.
    """
    clips = _used_clips(dataset.clips, data)
    if not dataset.has_labels:
        tests = {clip.source for clip in clips if clip.fold == data.test_fold}
        kept, left_out = (tuple(c for c in clips if (c.source in tests) == out) for out in (False, True))
        return Splits(kept, (), (), left_out)
    test, training_folds = _split_fold(clips, data.test_fold, "test")
    if dataset.val_fold is None:
        val = _validation_sources(tuple(clip for clip in training_folds if clip.labelled), dataset, data)
    else:
        val = {clip.source for clip in _split_fold(training_folds, dataset.val_fold, "validation")[0]}
    held_out = (*test, *(clip for clip in training_folds if clip.source in val))
    train = _keep_labels(tuple(clip for clip in training_folds if clip.source not in val), dataset, data)
    hears = data.unlabelled == "hear"
    return Splits(
        train=tuple(clip for clip in train if clip.labelled or hears),
        val=tuple(clip for clip in training_folds if clip.source in val and clip.labelled),
        test=tuple(clip for clip in test if clip.labelled),
        left_out=tuple(clip for clip in (*held_out, *(() if hears else train)) if not clip.labelled),
    )


def require_scorable(dataset: Dataset, splits: Splits, data: Data, *, test: bool) -> None:
    """Raise ValueError where the labels alone show that validation, or the test part if it is scored, has no score.

    One clip is enough with one tag per clip; with several, some tag must be on a clip and known to be absent from
    another. Called before training: found at the end, it would keep the trained models from being delivered. Of data
    without any label nothing is scored.
    """
    if not dataset.has_labels:
        return
    format = dataset.plain_format(data)
    own = f"these are the clips that format {format} names: add their files"
    advice = {"val": "choose another data.val_slice, or a larger data.val_share"}
    if format in OWN_VALIDATION:
        advice = {"val": own}
    if test:
        other = own if format in OWN_TEST else "choose another data.test_fold"
        advice["test"] = f"{other}, or leave the test part alone with train.score_test = false"
    for part, fix in advice.items():
        clips: tuple[Clip, ...] = getattr(splits, part)
        if dataset.labels == "single":
            scorable, rule = bool(clips), "it has no labelled clips"
        else:
            scorable = any(0 < have < known for have, known in zip(*dataset.clips_per_tag(clips), strict=True))
            rule = f"no tag is on some of its {len(clips)} clips and known to be absent from others"
        if not scorable:
            raise ValueError(f"the {part} part (data.test_fold = {data.test_fold}) cannot be scored: {rule}; {fix}")


def require_labels(dataset: Dataset, splits: Splits, learners: Sequence[str]) -> None:
    """Raise ValueError where models that learn from labels (`schedule.label_learners`) have none to learn from."""
    if learners and not any(dataset.clips_per_tag(splits.train)[1]):
        raise ValueError(
            f"column labelled: no label of the {len(splits.train)} training clips is known, and {name_some(learners)} "
            "would learn from labels; label some clips, or let the weights of the edges into these models sum to 1"
        )


def require_events(splits: Splits, learners: Sequence[str]) -> None:
    """Raise ValueError where models that learn when tags sound (`frame_labels`) have no events to learn from."""
    if learners and not any(clip.events is not None for clip in splits.train):
        raise ValueError(
            f"models.{learners[0]}.frame_labels = true: of no training clip is known when its tags sound; name a table "
            "of events with data.events, or set it to false"
        )


def require_full_batch(num_train: int, train: Train) -> None:
    """Raise ValueError where the training clips do not fill the batch of one step."""
    if num_train < train.batch_size:
        fix = (
            f"--set train.shard_size={num_train // train.shards}" if num_train >= train.shards else "lower train.shards"
        )
        raise ValueError(
            f"train.shard_size x train.shards = {train.batch_size}: a batch needs as many clips, and only {num_train} "
            f"are in the training split; {fix}, or add clips"
        )


def _used_clips(clips: tuple[Clip, ...], data: Data) -> tuple[Clip, ...]:
    """The clips of the test fold and of data.train_folds, if these are named."""
    if not data.train_folds:
        return clips
    folds = sorted({clip.fold for clip in clips})
    if unknown := sorted(set(data.train_folds) - set(folds)):
        raise ValueError(f"data.train_folds: no fold {unknown[0]}; the folds are {', '.join(map(str, folds))}")
    used = {data.test_fold, *data.train_folds}
    unused = {clip.source for clip in clips if clip.fold not in used}
    if shared := unused & {clip.source for clip in clips if clip.fold in data.train_folds}:
        raise ValueError(
            f"source {min(shared)} is in data.train_folds and in other folds ({len(shared)} such sources): a model "
            "that learns from the others would have heard it; give all clips of a source one fold"
        )
    return tuple(clip for clip in clips if clip.fold in used)


def _split_fold(clips: tuple[Clip, ...], fold: int, part: str) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """The clips of the fold that is this part (test or validation), and the others."""
    folds = sorted({clip.fold for clip in clips})
    if fold not in folds:
        where = "data.test_fold" if part == "test" else "the validation fold"
        raise ValueError(f"{where} = {fold}: no such fold; the folds are {', '.join(map(str, folds))}")
    chosen = tuple(clip for clip in clips if clip.fold == fold)
    others = tuple(clip for clip in clips if clip.fold != fold)
    shared = {clip.source for clip in chosen} & {clip.source for clip in others}
    if shared:
        raise ValueError(
            f"source {min(shared)} is in the {part} fold {fold} and in others ({len(shared)} such sources): a model "
            "would be scored on recordings it was trained on; give all clips of a source one fold"
        )
    return chosen, others


def _validation_sources(clips: tuple[Clip, ...], dataset: Dataset, data: Data) -> set[str]:
    """The sources in validation slice data.val_slice of the training folds, whose clips are given."""
    slices, single = round(1 / data.val_share), dataset.labels == "single"
    fillable = len({clip.source for clip in clips})
    if single and clips:
        fillable = min(fillable, max(Counter(clip.tags for clip in clips).values()))
    if fillable < slices:
        raise ValueError(
            f"data.val_share = {data.val_share}: that makes {slices} slices, but the training folds fill {fillable}; "
            f"{_larger_share(fillable)}add recordings"
        )
    return (_stratified_slice if single else _plain_slice)(clips, data, slices)


def _larger_share(fillable: int) -> str:
    """The smallest data.val_share, in hundredths, whose slices these recordings or clips fill, if there is one."""
    return f"--set data.val_share={math.ceil(100 / fillable) / 100:g}, or " if fillable >= 2 else ""


def _stratified_slice(clips: tuple[Clip, ...], data: Data, slices: int) -> set[str]:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(slices, shuffle=True, random_state=data.split_seed)
    sources = [clip.source for clip in clips]
    with warnings.catch_warnings():  # a tag with fewer clips than slices; `data_warnings` names those that miss a part
        warnings.filterwarnings("ignore", message="The least populated class")
        rows_by_slice = list(splitter.split(sources, [clip.tags[0] for clip in clips], sources))
    return {sources[row] for row in rows_by_slice[data.val_slice][1]}


def _plain_slice(clips: tuple[Clip, ...], data: Data, slices: int) -> set[str]:
    sources = sorted({clip.source for clip in clips})
    order = keyed_generator("val", data.split_seed).permutation(len(sources))
    return {sources[index] for index in np.array_split(order, slices)[data.val_slice]}


def _keep_labels(clips: tuple[Clip, ...], dataset: Dataset, data: Data) -> tuple[Clip, ...]:
    """The training clips, of which data.labelled_share of the labelled ones, in whole recordings, keep their labels.

    Those that keep them at a smaller share are among those at a larger one.
    """
    if data.labelled_share == 1:
        return clips
    labelled = [clip for clip in clips if clip.labelled]
    kept_above = _shares_that_keep_labels(labelled, dataset, data)
    if dataset.labels == "single":
        _require_every_tag(labelled, kept_above, data)
    return tuple(
        clip
        if not clip.labelled or kept_above[clip.source] < data.labelled_share
        else replace(clip, tags=(), absent=None, labelled=False, events=None)
        for clip in clips
    )


def _shares_that_keep_labels(clips: list[Clip], dataset: Dataset, data: Data) -> dict[str, float]:
    """For each source the share of labels above which its clips keep theirs.

    A source's place in the order is keyed by its name. From the first source on, which always keeps its labels, as many
    keep them as come nearest to the share of the clips. With one tag per clip this is done within the sources of each
    tag, which for a source with several is its commonest.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        counts[clip.source][clip.tags[0] if dataset.labels == "single" else ""] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for source in sorted(counts, key=lambda source: (keyed_seed("labelled", data.split_seed, source), source)):
        strata[min(counts[source], key=lambda tag: (-counts[source][tag], tag))].append(source)
    kept_above: dict[str, float] = {}
    for sources in strata.values():
        sizes = np.array([counts[source].total() for source in sources])
        nearer_above = (sizes.cumsum() - sizes / 2) / sizes.sum()  # halfway between without and with the source
        nearer_above[0] = 0
        kept_above |= dict(zip(sources, nearer_above.tolist(), strict=True))
    return kept_above


def _require_every_tag(clips: list[Clip], kept_above: dict[str, float], data: Data) -> None:
    """ValueError where a tag of the labelled training clips is on none that keeps its label."""
    by_tag: dict[str, float] = {}
    for clip in clips:
        (tag,) = clip.tags
        by_tag[tag] = min(by_tag.get(tag, 1.0), kept_above[clip.source])
    lost = sorted(tag for tag, share in by_tag.items() if share >= data.labelled_share)
    if lost:
        enough = (math.floor(100 * max(by_tag.values())) + 1) / 100
        raise ValueError(
            f"data.labelled_share = {data.labelled_share:g}: no labelled training clip is left of the tags "
            f"{name_some(lost)}; --set data.labelled_share={enough:g}"
        )
