"""What teaching did in a run, and in runs with other seeds: each student against its control on the test clips.

Reads the test logits that the taggers were delivered with; trains nothing. Called by the driver between training and
the end of the event log: a kill before the record leaves a run that `--resume` delivers and compares again.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from orchestrator.runs.location import RunLocation
from orchestrator.storage import object_store, published_folders
from orchestrator.storage.retry import retry_while_unavailable
from workloads.config.controls import controls_of
from workloads.config.recipe import Recipe
from workloads.evaluate.overlap import widened
from workloads.runtime.event_log import read_event_log
from workloads.runtime.json_files import TaggerState

Rows = dict[str, dict[str, Any]]  # model -> its row in the result
Predictions = dict[str, Any]  # tensors by name (`workloads/evaluate/deliver.py`), and the names that were `scored`
MASSES = (
    "attention_mass",
    "own_attention_mass",
)  # scores that are means over test clips (`evaluate/attention_mass.py`)
COMPARED = ("log_loss", "frame_mAP", *MASSES)  # beside the primary score, where models have them


def comparison_record(
    recipe: Recipe, location: RunLocation, seed_runs: Sequence[str], *, patience_s: float
) -> dict[str, Any]:
    """The record of a run that has just delivered its models; `seed_runs` are the URIs of its finished other seeds.

    Raises ValueError where their data are not the same.
    """

    def compare() -> dict[str, Any]:
        of_seeds = [_delivered(location), *map(_delivered_before, seed_runs)]
        return {
            student: _compare(student, control, of_seeds, recipe) for student, control in controls_of(recipe).items()
        }

    models = retry_while_unavailable(compare, what=location.uri, patience_s=patience_s)
    return {"kind": "comparison", "step": _last_result(location)["steps"], "models": models}


def _last_result(location: RunLocation) -> dict[str, Any]:
    return [record for record in read_event_log(location.event_log) if record["kind"] == "result"][-1]


def _delivered(location: RunLocation) -> Rows:
    rows: Rows = _last_result(location)["models"]
    return rows


def _delivered_before(uri: str) -> Rows:
    rows: Rows = object_store.read_json(object_store.join(uri, "outcome.json"))["models"]
    return rows


def _compare(student: str, control: str, of_seeds: list[Rows], recipe: Recipe) -> dict[str, Any]:
    sides = [
        tuple([published_folders.published_folder(rows[name]["checkpoint"])] for name in (student, control))
        for rows in of_seeds
    ]
    return compare_folders(student, sides, recipe.data.labels)


def compare_folders(student: str, of_seeds: Sequence[Sequence[Sequence[str]]], labels: str) -> dict[str, Any]:
    """What teaching did to a student: for each seed the folders of the taught models and those of their controls, one
    for each test fold, whose clips are joined; `not_compared` names scores that some of them lack. ValueError where the
    clips are not the same for all."""
    data = {fingerprint(folder) for sides in of_seeds for folders in sides for folder in folders}
    if len(data) > 1:
        raise _other_clips(student)
    sides = [tuple(joined_predictions(folders) for folders in each) for each in of_seeds]
    return compare_predictions(student, sides, labels)


def compare_predictions(student: str, of_seeds: Sequence[Sequence[Predictions]], labels: str) -> dict[str, Any]:
    """The same of test predictions: for each seed those of the taught model and those of its control."""
    import torch  # seconds to import, and every driver imports this module

    from workloads.evaluate.bootstrap import Pair, compare_means, what_teaching_did
    from workloads.evaluate.frame_bootstrap import what_teaching_did_in_time

    pairs, targets = [], []
    in_time, targets_in_time = [], []
    for predictions in of_seeds:
        pairs.append(Pair(*(side["logits_NC"] for side in predictions)))
        targets += [side["y_NC"] for side in predictions]
        if all("frames_XC" in side for side in predictions):
            in_time.append(Pair(*(side["frames_XC"] for side in predictions)))
            targets_in_time += [side["frame_y_XC"] for side in predictions]

    def alike(tensors: list[torch.Tensor]) -> bool:
        return all(torch.equal(tensor.nan_to_num(-1), tensors[0].nan_to_num(-1)) for tensor in tensors)

    if not alike(targets) or not alike(targets_in_time):
        raise _other_clips(student)
    compared = what_teaching_did(pairs, targets[0], labels)
    if len(in_time) == len(pairs):
        y_XC, clip_X = targets_in_time[0], of_seeds[-1][-1]["frame_clip_X"]
        compared["frame_mAP"] = what_teaching_did_in_time(in_time, y_XC, clip_X)
    for score in MASSES:
        if all(f"{score}_N" in side for predictions in of_seeds for side in predictions):
            compared[score] = compare_means(
                [(taught[f"{score}_N"], untaught[f"{score}_N"]) for taught, untaught in of_seeds]
            )
    missing = _not_compared(compared, [side for predictions in of_seeds for side in predictions])
    return compared | ({"not_compared": missing} if missing else {})


def _not_compared(compared: dict[str, Any], sides: Sequence[Predictions]) -> dict[str, str]:
    """By name the test scores that some of the published models have and that are not compared, with the reason."""
    from workloads.evaluate.deliver import MAX_COMPARED

    if not all("scored" in side for side in sides):  # no published models, but what was made of several
        return {}
    reasons = {
        "frame_mAP": "not all of these models were published with their test frames; of a model and a test fold up to "
        f"{MAX_COMPARED:,} logits of frames are",
        **dict.fromkeys(MASSES, "not all of these models were published with those of single test clips"),
    }
    scored = set[str]().union(*(side["scored"] for side in sides))
    return {name: reason for name, reason in reasons.items() if name in scored and name not in compared}


def widen(row: dict[str, Any], factor: float) -> None:
    """Make the intervals of a comparison `factor` times as long (`workloads.evaluate.overlap`)."""
    for own in (row, *(row[name] for name in COMPARED if name in row)):
        own["interval"] = list(widened(own["difference"], tuple(own["interval"]), factor))
    row["overlap_factor"] = factor


def clip_counts(folders: Sequence[str]) -> tuple[float, float]:
    """Mean numbers of training and of test clips of published taggers, one for each test fold."""
    counts = [_state(folder)["data"]["clips"] for folder in folders]
    train, test = (sum(count[part] for count in counts) / len(counts) for part in ("train", "test"))
    return train, test


class OtherClips(ValueError):
    """Models that were not trained and scored on the same clips."""


def _other_clips(student: str) -> OtherClips:
    return OtherClips(f"models.{student}: the seeds were trained on other clips; give every run the same data")


def joined_predictions(folders: Sequence[str]) -> Predictions:
    """The test predictions of published taggers, one for each test fold, as those of one test set."""
    return _joined([_test_predictions(folder) for folder in folders])


def _joined(folds: list[dict[str, Any]]) -> dict[str, Any]:
    """The test predictions of several folds as one; frames only where all have them, whose clips are numbered on."""
    import torch

    scored = set[str]().union(*(fold["scored"] for fold in folds))
    names = set.intersection(*({*fold} for fold in folds)) - {"scored"}
    joined: dict[str, Any] = {name: torch.cat([fold[name] for fold in folds]) for name in names}
    if "frame_clip_X" in names:
        before = list(accumulate((len(fold["y_NC"]) for fold in folds[:-1]), initial=0))
        joined["frame_clip_X"] = torch.cat(
            [fold["frame_clip_X"] + first for fold, first in zip(folds, before, strict=True)]
        )
    return joined | {"scored": scored}


def _test_predictions(folder: str) -> Predictions:
    """The tensors that a tagger was published with, and as `scored` the names of its test scores.

    Raises ValueError where a file is gone, damaged, or none of test predictions.
    """
    from workloads.evaluate.deliver import TEST_PREDICTIONS
    from workloads.runtime.tensor_files import parse_safetensors

    uri = object_store.join(folder, f"{TEST_PREDICTIONS}.safetensors")
    try:
        content = object_store.get_bytes(uri)
    except FileNotFoundError:
        raise ValueError(f"{uri}: is missing, so its test clips cannot be scored again; copy it back") from None
    tensors = parse_safetensors(content, uri)
    if missing := {"logits_NC", "y_NC"} - tensors.keys():
        raise ValueError(f"{uri}: holds no {min(missing)}: it was damaged or written by something else")
    return {**tensors, "scored": {*_state(folder).get("test", {})}}


def fingerprint(folder: str) -> str:
    """Which clips, with which labels, a published tagger was trained and scored on."""
    return str(_state(folder)["data"]["fingerprint"])


def _state(folder: str) -> dict[str, Any]:
    uri = object_store.join(folder, "state.json")
    try:
        state: dict[str, Any] = object_store.read_json(uri, TaggerState)
    except FileNotFoundError:
        raise ValueError(f"{uri}: is missing, so nobody knows what this tagger is; copy it back") from None
    return state
