"""What teaching did over many finished runs: test folds are pooled, seeds repeated (`antiphon compare`).

Reads recipes, outcomes and the test logits that models were published with; trains nothing, writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.recipes.loader import flatten
from orchestrator.runs.comparison import clip_counts, compare_folders, widen
from orchestrator.runs.recipe_file import read_recipe
from orchestrator.runs.resume import RECIPE, finished_outcome
from orchestrator.storage import object_store, published_folders
from workloads.config.edge import STORE
from workloads.evaluate.overlap import overlap_factor

# What is learned and how: the same in all runs of a side. Folds may have own stores, first weights and batches.
METHOD_TABLES = ("models", "edges", "schedule", "augment")
METHOD_KEYS = ("data.clip_seconds", "data.labelled_share", "data.unlabelled", "train.label_smoothing")
OF_A_FOLD = ("init", "column", "name", "view_seed")


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

    @property
    def method(self) -> dict[str, str]:
        """The values that all runs of a side share, by their path."""
        learning = sorted(name for name, model in self.recipe["models"].items() if not model["control_of"])
        names = {"models": ", ".join(learning), "edges": str(len(self.recipe["edges"]))}
        return names | {
            path: value
            for path, value in flatten(self.recipe).items()
            if path in METHOD_KEYS or _tells_the_method(path, value)
        }


def _tells_the_method(path: str, value: str) -> bool:
    table, key = path.split(".")[0], path.rsplit(".", 1)[-1]
    return table in METHOD_TABLES and key not in OF_A_FOLD and not value.startswith(STORE)


def compare_runs(taught: Sequence[str], controls: Sequence[str]) -> dict[str, Any]:
    """`folds`, `seeds`, `differs` and, for each student, `compare` as a run has it (`workloads.evaluate.bootstrap`).

    Of several folds the intervals are widened for training sets that overlap, by the training clips of the taught
    models (`workloads.evaluate.overlap`). `differs` are the settings in which controls of other runs differ from the
    taught models besides the edges, each with its two values. A student's control is that of its own run, or, where
    `controls` names runs, the model of the same name in the one with the same test fold and seed. The clips of all
    folds are one test set; every fold needs the same seeds. Raises ValueError for a run that is not there, is not done
    or has no test logits, for two runs of one fold and seed, where a pair is incomplete, where data or labels differ,
    and where the runs of a side learn in different ways.
    """
    runs = _by_key(taught, "RUN")
    others = _by_key(controls, "--control") if controls else runs
    if missing := sorted(runs.keys() ^ others.keys()):
        absent_side = "control" if missing[0] in runs else "taught run"
        raise ValueError(
            f"test fold {missing[0].fold}, seed {missing[0].seed}: no {absent_side}; each run needs one of both"
        )
    folds, seeds = (sorted(set(values)) for values in zip(*runs, strict=True))
    if absent := [Key(fold, seed) for fold in folds for seed in seeds if Key(fold, seed) not in runs]:
        raise ValueError(
            f"test fold {absent[0].fold}: no run of seed {absent[0].seed}; every fold needs the same seeds"
        )
    _require_same_labels([*runs.values(), *others.values()])
    for side in (runs, others):
        _require_same_method([*side.values()])
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
        if len(folds) > 1:
            widen(compared[student], overlap_factor(len(folds), *clip_counts(of_seeds[0][0])))
    differs = _differs(first, next(iter(others.values())))
    return {"folds": folds, "seeds": seeds, "compare": compared, "differs": differs}


def _differs(taught: FinishedRun, control: FinishedRun) -> dict[str, list[str]]:
    """What else than the edges is not the same: the taught run's value and that of the run with the controls."""
    sides = taught.method, control.method
    return {
        path: [side[path] for side in sides]
        for path in sides[0].keys() & sides[1].keys()
        if sides[0][path] != sides[1][path] and path.partition(".")[0] != "edges"
    }


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


def _require_same_method(runs: Sequence[FinishedRun]) -> None:
    """Of keys that only one recipe has, which another version may have written, nothing is said."""
    first, method = runs[0], runs[0].method
    for run in runs:
        own = run.method
        if differing := [path for path in method if path in own and own[path] != method[path]]:
            path = differing[0]
            raise ValueError(
                f"{run.uri}: has {path} = {own[path]}, and {first.uri} has {method[path]}; folds and seeds of one way "
                "of learning are compared together, so compare these apart (`antiphon diff` shows what differs)"
            )


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
