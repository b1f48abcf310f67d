"""Uses of a published tagger: scoring it on a data set, and tagging audio files. Loads torch on the first call only."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.storage import object_store
from workloads.config.recipe import Recipe
from workloads.runtime.opener import unreadable

if TYPE_CHECKING:
    from workloads.data.prepare import PreparedData
    from workloads.models.tagger import Tagger


def evaluate_checkpoint(uri: str, recipe: Recipe, part: str) -> dict[str, Any]:
    """Score a published tagger on the train, val or test part of a recipe's data set.

    Raises ValueError for an unknown part, a folder that holds no tagger, or a data set with other tags.
    """
    import torch

    from workloads.evaluate import metrics
    from workloads.evaluate.predict import load_tagger, predict_clips

    if part not in ("train", "val", "test"):
        raise ValueError(f"--part {part!r}: must be train, val or test")
    with tempfile.TemporaryDirectory() as scratch:
        tagger, state = load_tagger(object_store.fetch(uri, Path(scratch)))
    torch.set_num_threads(recipe.train.threads)
    prepared = prepare_for(tagger, state, recipe, uri)
    clips = getattr(prepared.splits, part)
    if not clips:
        raise ValueError(f"--part {part!r}: this data set has no such clips; choose another part or data.test_fold")
    logits_NC, y_NC = predict_clips(tagger, clips, prepared)
    return {
        "checkpoint": uri,
        "model": state["name"],
        "part": part,
        "clips": len(clips),
        "scores": metrics.score(logits_NC, y_NC, recipe.data.labels),
        "per_tag": metrics.per_tag(logits_NC, y_NC, tagger.tags, recipe.data.labels),
    }


def prepare_for(tagger: "Tagger", state: dict[str, Any], recipe: Recipe, uri: str) -> "PreparedData":
    """A recipe's data set, prepared for this tagger, published at `uri`: with its sample rate and clip length.

    Raises ValueError where tags or labels differ, and where the tagger was trained on this data set with another test
    fold: clips of the recipe's test fold were then in its training data.
    """
    from workloads.data.prepare import prepare

    recipe = replace(recipe, data=replace(recipe.data, clip_seconds=tagger.clip_seconds))
    prepared = prepare(recipe, object_store.FsspecFiles(), rate=tagger.clip_rate)
    if prepared.dataset.tags != tagger.tags:
        raise ValueError(
            f"checkpoint {uri!r}: its tags are {', '.join(tagger.tags)}, those of the data set are "
            f"{', '.join(prepared.dataset.tags)}; choose a data set with the same tags"
        )
    if recipe.data.labels != tagger.labels:
        raise ValueError(
            f"data.labels = {recipe.data.labels!r}: the checkpoint was trained with {tagger.labels!r}; "
            f"--set data.labels={tagger.labels}"
        )
    trained_on = state.get("data", {})
    is_same = trained_on.get("fingerprint") == prepared.dataset.fingerprint()
    if is_same and trained_on["test_fold"] != recipe.data.test_fold:
        raise ValueError(
            f"data.test_fold = {recipe.data.test_fold}: the checkpoint {uri!r} was trained on clips of this fold; its "
            f"test fold is --set data.test_fold={trained_on['test_fold']}"
        )
    return prepared


@dataclass(frozen=True)
class TaggedFiles:
    """What `tag` found, by file: tags with probabilities, what was mended in a sound, and why others have no tags."""

    tags: dict[str, list[tuple[str, float]]]
    notes: dict[str, tuple[str, ...]]
    broken: dict[str, str]


def tag_files(uri: str, files: list[str], *, top: int) -> TaggedFiles:
    """The `top` most likely tags of each file. A file that cannot be read or heard does not end the others.

    Raises ValueError for `top` below 1.
    """
    from workloads.data.decode import load_sound
    from workloads.evaluate.predict import BadNumbers, load_tagger, tag_sound
    from workloads.export.fold import fold_batch_norm

    if top < 1:
        raise ValueError(f"--top {top}: must be 1 or more")
    opener = object_store.FsspecFiles()
    with tempfile.TemporaryDirectory() as scratch:
        tagger, state = load_tagger(object_store.fetch(uri, Path(scratch)))
    tagger, found = fold_batch_norm(tagger), TaggedFiles({}, {}, {})
    for name in files:
        try:
            with opener.open(name) as file:
                sound = load_sound(file, rate=state["clip_rate"])
        except Exception as error:  # whatever goes wrong while one file is opened is that file's fault
            found.broken[name] = unreadable(error)
            continue
        try:
            found.tags[name] = tag_sound(tagger, state, sound.x_T, top=top)
        except BadNumbers as error:
            found.broken[name] = str(error)
            continue
        if sound.notes:
            found.notes[name] = sound.notes
    return found
