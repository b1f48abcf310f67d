"""What teaching did over many finished runs: test folds are pooled, seeds repeated (`antiphon compare`).

Reads recipes, outcomes and the test logits that models were published with; trains nothing, writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.runs.comparison import compare_folders
from orchestrator.runs.recipe_file import read_recipe
from orchestrator.runs.resume import RECIPE, finished_outcome
from orchestrator.storage import object_store, published_folders


class Key(NamedTuple):
    """What a run is paired by."""

    fold: int
    seed: int


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done, by its resolved recipe and its outcome."""

    uri: str
    recipe: dict[str, Any]
    models: dict[str, Any]

    @property
    def key(self) -> Key:
        return Key(self.recipe["data"]["test_fold"], self.recipe["train"]["seed"])

    @property
    def pairs(self) -> dict[str, str]:
        """Student -> its control in this run."""
        return {model["control_of"]: name for name, model in self.recipe["models"].items() if model["control_of"]}

    @property
    def students(self) -> list[str]:
        """The models that are taught, without controls."""
        taught = {edge["student"] for edge in self.recipe["edges"]}
        return [name for name, model in self.recipe["models"].items() if name in taught and not model["control_of"]]


def compare_runs(taught: Sequence[str], controls: Sequence[str]) -> dict[str, Any]:
    """`folds`, `seeds` and, for each student, `compare` as a run has it (`workloads.evaluate.bootstrap`).

    A student's control is that of its own run, or, where `controls` names runs, the model of the same name in the one
    with the same test fold and seed. The clips of all folds are one test set; every fold needs the same seeds. Raises
    ValueError for a run that is not there, is not done or has no test logits, for two runs of one fold and seed, where
    a pair is incomplete, and where data or labels differ.
    """
    runs = _by_key(taught, "RUN")
    others = _by_key(controls, "--control") if controls else runs
    if missing := sorted(runs.keys() ^ others.keys()):
        side = "control" if missing[0] in runs else "taught run"
        raise ValueError(f"test fold {missing[0].fold}, seed {missing[0].seed}: no {side}; each run needs one of both")
    folds, seeds = (sorted(set(values)) for values in zip(*runs, strict=True))
    if absent := [Key(fold, seed) for fold in folds for seed in seeds if Key(fold, seed) not in runs]:
        raise ValueError(
            f"test fold {absent[0].fold}: no run of seed {absent[0].seed}; every fold needs the same seeds"
        )
    _require_same_labels([*runs.values(), *others.values()])
    first = next(iter(runs.values()))
    pairs = {name: name for name in first.students} if controls else first.pairs
    if not pairs:
        fix = "its recipe has no edges" if controls else "run the recipe with --compare, or name runs with --control"
        raise ValueError(f"{first.uri}: no model of this run has a control; {fix}")
    labels = first.recipe["data"]["labels"]
    compared = {}
    for student, control in pairs.items():
        for other in others.values() if controls else ():
            _require_untaught(other, control)
        of_seeds = [
            [
                [_published(side[Key(fold, seed)], name) for fold in folds]
                for side, name in ((runs, student), (others, control))
            ]
            for seed in seeds
        ]
        compared[student] = compare_folders(student, of_seeds, labels)
    return {"folds": folds, "seeds": seeds, "compare": compared}


def _by_key(uris: Sequence[str], option: str) -> dict[Key, FinishedRun]:
    found: dict[Key, FinishedRun] = {}
    for uri in uris:
        run = _read(uri, option)
        if (other := found.setdefault(run.key, run)) is not run:
            raise ValueError(
                f"{option}: {other.uri} and {uri} both have test fold {run.key.fold} and seed {run.key.seed}; name one"
            )
    return found


def _read(uri: str, option: str) -> FinishedRun:
    outcome = finished_outcome(uri)
    if outcome is None:
        raise ValueError(f"{option} {uri!r}: there is no run that is done; check the path, or finish it with --resume")
    recipe = read_recipe(uri)
    if recipe is None:
        raise ValueError(f"{option} {uri!r}: it holds no {RECIPE}, so it is no training run; name a run")
    return FinishedRun(uri, recipe, outcome["models"])


def _require_same_labels(runs: Sequence[FinishedRun]) -> None:
    first = runs[0]
    for run in runs:
        if run.recipe["data"]["labels"] != first.recipe["data"]["labels"]:
            raise ValueError(f"{run.uri}: its data.labels is not that of {first.uri}")


def _require_untaught(run: FinishedRun, name: str) -> None:
    if any(edge["student"] == name for edge in run.recipe["edges"]):
        raise ValueError(
            f"--control {run.uri!r}: its model {name} is taught, so it is no control; name a run without edges into it "
            "(--set 'edges=[]')"
        )


def _published(run: FinishedRun, name: str) -> str:
    if name not in run.models:
        raise ValueError(f"{run.uri}: no model {name}; the models are {', '.join(run.models)}")
    if not run.recipe["train"]["score_test"]:
        raise ValueError(f"{run.uri}: train.score_test was false, so there are no test logits; run it with true")
    return published_folders.published_folder(object_store.join(run.uri, "models", name))
