"""What a run delivers: each model's averaged weights as a published tagger, scored on validation and test.

The only code of a run that reads the test fold.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workloads.config.recipe import Recipe
from workloads.data.clips import Clip, Dataset
from workloads.data.prepare import PreparedData
from workloads.distill.pool import ModelPool
from workloads.evaluate import metrics
from workloads.evaluate.attention_mass import attention_masses, holds_keywords
from workloads.evaluate.frames import clips_with_frames, frame_targets, score_frames
from workloads.evaluate.predict import predict_clips, raised_on_all
from workloads.evaluate.shown_profiles import profiles_of, shown_clips
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint
from workloads.runtime.placement import Placement, WorkerGroup
from workloads.runtime.precision import full_float32
from workloads.runtime.session import Session

VALIDATION_KEYS = ("train_folds", "val_share", "val_slice", "split_seed")  # settings that choose the validation clips
# The file of a published tagger with its test clips' logits_NC and y_NC, and frames of it, labels and clips of these;
# of keywords with their attention_mass_N, and own_attention_mass_N of networks with attention over time.
TEST_PREDICTIONS = "test"
MAX_COMPARED = 2**23  # logits of test frames that are kept to be compared with a control's


class Delivered(NamedTuple):
    """What a run records of its models, by name; empty but on rank 0."""

    rows: dict[str, dict[str, Any]]  # of the result table
    profiles: dict[str, dict[str, Any]]  # of a run on keywords, of the clips that a report shows
    predictions: dict[str, tuple[Tensor, Tensor]]  # logits_NC, y_NC of the test clips, where the report plays some


def deliver_models(
    recipe: Recipe, pool: ModelPool, prepared: PreparedData, placement: Placement, session: Session
) -> Delivered:
    """Score, publish and release every model; returns on rank 0 what the run records of them.

    Called once per attempt by every worker; those that hold a model score it, rank 0 publishes. A kill in the middle
    leaves some models published: the next attempt publishes all of them again. `weights_sha256` is of the last trained
    weights, also where an average is delivered. Test logits are published with a model, so that it can be compared with
    its control, and with models of other runs (`evaluate/bootstrap.py`). Raises BadNumbers on all workers.
    """
    delivered = Delivered({}, {}, {})
    for name, model in recipe.models.items():
        own = raised_on_all(placement.everyone, partial(_scored, name, recipe, pool, prepared, placement))
        scored = placement.bring(name, own)
        if scored is not None:
            folder = session.work_dir / "models" / name
            checkpoint.write(folder, tensors=scored.tensors, state=scored.state)
            delivered.rows[name] = scored.row | {"checkpoint": session.deliver(folder)}
            delivered.profiles.update({name: scored.profiles} if scored.profiles else {})
            if TEST_PREDICTIONS in scored.tensors and not model.control_of and recipe.train.report_clips:
                test = scored.tensors[TEST_PREDICTIONS]
                delivered.predictions[name] = (test["logits_NC"], test["y_NC"])
    return delivered


class _Scored(NamedTuple):
    """What is delivered of a model."""

    row: dict[str, Any]
    state: dict[str, Any]  # of the published tagger
    tensors: dict[str, dict[str, Tensor]]  # by file, on the CPU
    profiles: dict[str, Any]  # of the clips that a report shows; empty where it shows none


def _scored(name: str, recipe: Recipe, pool: ModelPool, prepared: PreparedData, placement: Placement) -> _Scored | None:
    """Score a model's averaged weights, with all workers that hold it, and release it; None on the other ones."""
    if not placement.holds(name):
        return None
    trained = pool.train_state(name)
    digest = checkpoint.weights_digest(trained.tagger.state_dict())
    trained.tagger.load_state_dict(trained.average.delivered_state(trained.tagger))
    tagger = trained.tagger.eval()
    row: dict[str, Any] = {
        "params": tagger.num_parameters,
        "steps_taught": pool.steps_taught[name],
        "steps_learned": trained.own_step,
        "steps_skipped": trained.skipped_steps,
    }
    with full_float32(next(tagger.parameters()).device):  # as `antiphon evaluate` does, whatever the run trained in
        predictions = _predictions(tagger, recipe, prepared, placement.workers)
        masses = _attention_masses(tagger, list(predictions), prepared, placement.workers)
    row |= _scores({part: found[:2] for part, found in predictions.items()}, recipe, prepared)
    in_time = {part: clips_with_frames(tagger, getattr(prepared.splits, part)) for part in predictions}
    for part, (_, _, frames) in predictions.items():
        row[part] |= score_frames(frames, in_time[part], prepared.dataset)
        row[part] |= {score: mass_N.mean().item() for score, mass_N in masses.get(part, {}).items()}
    row["weights_sha256"] = digest
    tensors = {"weights": {key: tensor.detach().cpu() for key, tensor in tagger.state_dict().items()}}
    if "test" in predictions:
        logits_NC, y_NC, frames = predictions["test"]
        tensors[TEST_PREDICTIONS] = {"logits_NC": logits_NC, "y_NC": y_NC}
        tensors[TEST_PREDICTIONS] |= _frames_to_compare(frames, in_time["test"], prepared.dataset)
        tensors[TEST_PREDICTIONS] |= {f"{score}_N": mass_N for score, mass_N in masses.get("test", {}).items()}
    shown = shown_clips(prepared) if "test" in predictions else []
    profiles = profiles_of(tagger, shown, prepared) if shown else {}
    pool.release(name)
    return _Scored(row, _tagger_state(name, tagger, recipe, prepared, row), tensors, profiles)


def _predictions(
    tagger: Tagger, recipe: Recipe, prepared: PreparedData, workers: WorkerGroup
) -> dict[str, tuple[Tensor, Tensor, list[Tensor]]]:
    """logits_NC, y_NC and frames of the validation clips and, with `train.score_test`, of the test clips; of data
    without any label, of none."""
    parts = {"val": prepared.splits.val} | ({"test": prepared.splits.test} if recipe.train.score_test else {})
    return {part: predict_clips(tagger, clips, prepared, workers) for part, clips in parts.items() if clips}


def _attention_masses(
    tagger: Tagger, parts: Sequence[str], prepared: PreparedData, workers: WorkerGroup
) -> dict[str, dict[str, Tensor]]:
    """mass_N of the clips of each part by score; empty where they are no keywords."""
    if not holds_keywords(prepared):
        return {}
    return {part: attention_masses(tagger, getattr(prepared.splits, part), prepared, workers) for part in parts}


def _frames_to_compare(frames: Sequence[Tensor], clips: Sequence[Clip], dataset: Dataset) -> dict[str, Tensor]:
    """What is published of test frames; nothing where there are none, or too many."""
    if not frames or sum(own.numel() for own in frames) > MAX_COMPARED:
        return {}
    return {
        "frames_XC": torch.cat(list(frames)),
        "frame_y_XC": torch.from_numpy(frame_targets(frames, clips, dataset)).half(),
        "frame_clip_X": torch.arange(len(clips), dtype=torch.int32).repeat_interleave(
            torch.tensor([len(own) for own in frames])
        ),
    }


def _scores(predictions: dict[str, tuple[Tensor, Tensor]], recipe: Recipe, prepared: PreparedData) -> dict[str, Any]:
    """The scores of each part, empty for one that is not scored. Those by tag are of the last one."""
    labels = recipe.data.labels
    scores: dict[str, Any] = {"val": {}, "test": {}, "per_tag": {}}
    if not predictions:
        return scores
    scores |= {part: metrics.score(logits_NC, y_NC, labels) for part, (logits_NC, y_NC) in predictions.items()}
    logits_NC, y_NC = list(predictions.values())[-1]
    scores["per_tag"] = metrics.per_tag(logits_NC, y_NC, prepared.dataset.tags, labels)
    if labels == "single":
        scores["confusion"] = _json_matrix(metrics.confusion(logits_NC, y_NC))
    else:
        scores["cooccurrence"] = _json_matrix(metrics.cooccurrence(logits_NC, y_NC))
    return scores


def _tagger_state(
    name: str, tagger: Tagger, recipe: Recipe, prepared: PreparedData, row: dict[str, Any]
) -> dict[str, Any]:
    """The `state.json` of a published tagger: what it is, what it was trained on, its scores."""
    state = {
        "kind": "tagger",
        "name": name,
        "model": asdict(recipe.models[name]),
        "tags": list(prepared.dataset.tags),
        "labels": recipe.data.labels,
        "clip_seconds": recipe.data.clip_seconds,
        "long_clips": recipe.data.long_clips,
        "clip_rate": recipe.rate,
    }
    if row["steps_learned"]:
        return state | _training_origin(recipe, prepared, tagger) | {part: row[part] for part in ("val", "test")}
    return (
        tagger.initial_checkpoint | state
    )  # still the tagger of its initial weights: not trained on any of these clips


def _training_origin(recipe: Recipe, prepared: PreparedData, tagger: Tagger) -> dict[str, Any]:
    """The data a tagger was trained on, and the origin of its initial weights, whose licence still applies.

    The origin is passed on from run to run.
    """
    data = {
        "format": recipe.data.format,
        "fingerprint": prepared.dataset.fingerprint(),
        "test_fold": recipe.data.test_fold,
        "validation": {key: value for key, value in asdict(recipe.data).items() if key in VALIDATION_KEYS},
        "clips": {part: len(getattr(prepared.splits, part)) for part in ("train", "val", "test")},
    }
    first = tagger.initial_checkpoint.get("origin") or tagger.initial_checkpoint.get("first_weights")
    return {"recipe": recipe.name, "data": data} | ({"first_weights": first} if first else {})


def _json_matrix(matrix_CC: Tensor) -> list[list[float | None]]:
    """A matrix for JSON, which has no NaN: None where a tag has no clips."""
    return [[None if math.isnan(value) else value for value in row] for row in matrix_CC.tolist()]
