"""The split of a data set into train, validation and test, and what each part must have. Opens no file."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workloads.config.data import OWN_TEST, OWN_VALIDATION, Data
from workloads.config.recipe import Train
from workloads.data.clips import Clip, Dataset
from workloads.data.labelled_share import keep_labels
from workloads.runtime.rng import keyed_generator
from workloads.runtime.text import name_some


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
    train = keep_labels(tuple(clip for clip in training_folds if clip.source not in val), dataset, data)
    hears = data.unlabelled == "hear"
    return Splits(
        train=tuple(clip for clip in train if clip.labelled or hears),
        val=tuple(clip for clip in training_folds if clip.source in val and clip.labelled),
        test=tuple(clip for clip in test if clip.labelled),
        left_out=tuple(clip for clip in (*held_out, *(() if hears else train)) if not clip.labelled),
    )


def require_two_tags(dataset: Dataset) -> None:
    """Raise ValueError where each clip has the one tag that there is: its probability is 1, and nothing can be learned.

    Called before anything is decoded or trained.
    """
    if dataset.labels == "single" and len(dataset.tags) < 2:
        raise ValueError(
            f"data.labels = 'single': one of the tags is each clip's, and there is only {name_some(dataset.tags)}: "
            "nothing to tell apart; add clips with other tags, or set data.labels = 'multi', where clips without the "
            "tag count too"
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
    if data.test_fold not in folds:
        return clips  # the caller names it, and the folds that there are
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
