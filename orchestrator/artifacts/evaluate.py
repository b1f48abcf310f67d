"""A published tagger's scores on a data set. Loads torch on the first call only."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts.predictions import check_out, write_predictions
from orchestrator.storage import published_folders
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.config.data import COMPUTED
from workloads.config.recipe import Recipe
from workloads.runtime.cpu import use_cpu
from workloads.runtime.json_files import json_text
from workloads.runtime.scratch import scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

    from workloads.data.clips import Clip
    from workloads.data.prepare import PreparedData
    from workloads.models.tagger import Tagger


MOST_WRONG = 10  # clips that are listed as heard most wrongly
NUM_LIKELIEST = 3  # of these clips, the most likely tags that are listed


def evaluate_checkpoint(
    uri: str, recipe: Recipe, part: str, *, out: str = "", psds: bool = False, by_boxes: bool = False
) -> dict[str, Any]:
    """Score a published tagger on the train, val or test part of a recipe's data set; values for JSON, without NaN.

    `out` is a file for the prediction of every scored clip, empty for none; unlabelled clips are not scored. With
    `psds` PSDS1 is among the scores, with `by_boxes` of change-point boxes. Raises ValueError for an unknown part, a
    file that cannot be written, a package that is not installed, a folder that holds no tagger, weights that give no
    numbers, and data that the tagger cannot be scored on (`prepare_for`).
    """
    from workloads.evaluate import metrics
    from workloads.evaluate.predict import load_tagger
    from workloads.evaluate.psds import require_packages
    from workloads.models.probabilities import probabilities

    if part not in ("train", "val", "test"):
        raise ValueError(f"--part {part!r}: must be train, val or test")
    if out:
        check_out(out)
    if psds:
        require_packages(by_boxes=by_boxes)
    elif by_boxes:
        raise ValueError("--boxes: is for PSDS; give --psds too, or leave it out")
    with scratch_folder() as scratch:
        tagger, state = load_tagger(published_folders.fetch(uri, scratch), uri)
    use_cpu(recipe.train.threads)
    prepared = prepare_for(tagger, state, recipe, uri)
    if not prepared.dataset.has_labels:
        raise ValueError(f"--part {part!r}: no clip of this data set has a label, so nothing can be scored; label some")
    if part == "val":
        _require_own_validation(state, prepared, uri)
    clips = tuple(clip for clip in getattr(prepared.splits, part) if clip.labelled)
    dataset = prepared.dataset
    if not clips:
        raise ValueError(f"--part {part!r}: this data set has no such clips; choose another part or data.test_fold")
    logits_NC, y_NC, scores = _scored(tagger, clips, prepared, uri, psds=psds, by_boxes=by_boxes)
    p_NC = probabilities(logits_NC.double(), tagger.labels)
    if out:
        write_predictions(out, clips, p_NC, tagger.tags)
    per_tag = metrics.tag_scores(logits_NC, y_NC, tagger.tags, tagger.labels)
    return {
        "checkpoint": uri,
        "model": state["name"],
        "part": part,
        "labels": tagger.labels,
        "clips": len(clips),
        "quarantined": len(prepared.quarantined),
        "scores": scores,
        "chance": _chance(clips, prepared, scores),
        "tags": len(tagger.tags),
        "tags_scored": sum(scores.average_precision is not None for scores in per_tag.values()),
        "tags_not_in_data": list(dataset.not_in_data),
        "per_tag": {
            tag: asdict(scores) | ({"reason": "not in the data"} if tag in dataset.not_in_data else {})
            for tag, scores in per_tag.items()
        },
        "most_wrong": _most_wrong(clips, metrics.clip_losses(logits_NC, y_NC, tagger.labels), p_NC, tagger.tags),
        "out": out or None,
    }


def _scored(
    tagger: "Tagger", clips: Sequence["Clip"], prepared: "PreparedData", uri: str, *, psds: bool, by_boxes: bool
) -> tuple["Tensor", "Tensor", dict[str, float]]:
    """logits_NC and y_NC of some clips, and the scores; ValueError as in `evaluate_checkpoint`."""
    from workloads.evaluate import metrics
    from workloads.evaluate.attention_mass import attention_masses, holds_keywords
    from workloads.evaluate.frames import clips_with_frames, score_frames
    from workloads.evaluate.predict import BadNumbers, predict_clips
    from workloads.evaluate.psds import psds1

    try:
        logits_NC, y_NC, frames = predict_clips(tagger, clips, prepared)
    except BadNumbers as error:
        raise ValueError(f"checkpoint {uri!r}: {error}") from None
    in_time = clips_with_frames(tagger, clips)
    scores = metrics.score(logits_NC, y_NC, tagger.labels) | score_frames(frames, in_time, prepared.dataset)
    if holds_keywords(prepared):
        masses = attention_masses(tagger, clips, prepared)
        scores |= {score: mass_N.mean().item() for score, mass_N in masses.items()}
    if psds:
        if not in_time:
            raise ValueError(f"--psds: the tagger {uri!r} has no logits in time, or it is not known when tags sound")
        if (value := psds1(frames, in_time, prepared.dataset, by_boxes=by_boxes)) is not None:
            scores["psds1"] = value
    return logits_NC, y_NC, scores


def _chance(clips: Sequence["Clip"], prepared: "PreparedData", scores: dict[str, float]) -> dict[str, float]:
    """The scores that need no model, by name; masses of attention where the model has them."""
    from workloads.evaluate.attention_mass import ENERGY, OWN, holds_keywords, mass_of_flat_profiles
    from workloads.evaluate.chance import chance_levels

    levels = chance_levels(*prepared.dataset.clips_per_tag(clips), prepared.dataset.labels)
    if holds_keywords(prepared):
        flat = mass_of_flat_profiles(clips, seconds=prepared.recipe.data.clip_seconds)
        levels |= {name: flat for name in (ENERGY, OWN) if name in scores}
    return levels


def _most_wrong(
    clips: Sequence["Clip"], loss_N: "Tensor", p_NC: "Tensor", tags: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The clips of the highest loss first: their tags and the model's most likely ones, with their probabilities.

    Clips of which no label is known have no loss.
    """
    known = [row for row in loss_N.argsort(descending=True, stable=True).tolist() if not loss_N[row].isnan()]
    column = {tag: index for index, tag in enumerate(tags)}
    return [
        {
            "clip_id": clips[row].clip_id,
            "loss": loss_N[row].item(),
            "tags": {tag: p_NC[row, column[tag]].item() for tag in clips[row].tags},
            "likeliest": {
                tags[index]: p_NC[row, index].item() for index in p_NC[row].topk(min(NUM_LIKELIEST, len(tags))).indices
            },
        }
        for row in known[:MOST_WRONG]
    ]


def prepare_for(tagger: "Tagger", state: dict[str, Any], recipe: Recipe, uri: str) -> "PreparedData":
    """A recipe's data set, prepared for this tagger, published at `uri`: with its tags, rate, clip length and rule
    for longer clips.

    Tags are matched by name; the data set need not have all of them. Raises ValueError for tags that the tagger does
    not know, where labels differ, and where the tagger was trained on this data set with another test fold: clips of
    the recipe's test fold were then in its training data.
    """
    if recipe.data.labels != tagger.labels:
        raise ValueError(
            f"data.labels = {recipe.data.labels!r}: the checkpoint was trained with {tagger.labels!r}; "
            f"--set data.labels={tagger.labels}"
        )
    prepared = prepared_like(tagger, state, recipe, model_tags=tagger.tags)
    recipe = prepared.recipe
    trained_on = state.get("data", {})
    is_same = trained_on.get("fingerprint") == prepared.dataset.fingerprint()
    learned_from = trained_on.get("validation", {}).get("train_folds")  # none named: all folds but the test fold
    knows_fold = not learned_from or recipe.data.test_fold in learned_from
    if is_same and trained_on["test_fold"] != recipe.data.test_fold and knows_fold:
        fix = f"data.test_fold={trained_on['test_fold']}"  # a foreign file's text
        raise ValueError(
            f"data.test_fold = {recipe.data.test_fold}: the checkpoint {uri!r} was trained on clips of this fold; its "
            f"test fold is --set {shlex.quote(fix)}"
        )
    return prepared


def prepared_like(
    tagger: "Tagger", state: dict[str, Any], recipe: Recipe, *, model_tags: tuple[str, ...] = ()
) -> "PreparedData":
    """A recipe's data set with this tagger's rate, clip length and rule for longer clips.

    With the data set's own tags, unless `model_tags` are given. Raises ValueError where the clips are computed, and
    would not be as long as the recipe says.
    """
    from workloads.data.prepare import prepare

    data = recipe.data
    if data.format in COMPUTED and data.clip_seconds != tagger.clip_seconds:
        raise ValueError(
            f"data.clip_seconds = {data.clip_seconds:g}: clips of {data.format} last so long, and this tagger hears "
            f"{tagger.clip_seconds:g} s; --set data.clip_seconds={tagger.clip_seconds:g}"
        )
    decoded = {"clip_seconds": tagger.clip_seconds, "long_clips": state["long_clips"]}
    recipe = replace(recipe, data=replace(data, **decoded))
    return prepare(recipe, FsspecFiles(), rate=tagger.clip_rate, model_tags=model_tags)


def _require_own_validation(state: dict[str, Any], prepared: "PreparedData", uri: str) -> None:
    """ValueError where other clips of the training folds validate than when the tagger was trained: it knows them."""
    trained_on, data = state.get("data", {}), prepared.recipe.data
    if trained_on.get("fingerprint") != prepared.dataset.fingerprint():
        return
    chosen = trained_on.get("validation", {})
    for key, own in ({"train_folds": []} | chosen if chosen else {}).items():
        value = getattr(data, key, own)
        if isinstance(value, tuple):
            value = list(value)
        if value != own:
            fix = f"data.{key}={json_text(own)}"
            raise ValueError(
                f"data.{key} = {value}: the checkpoint {uri!r} was trained on clips of this validation slice; its own "
                f"is --set {shlex.quote(fix)}"
            )
