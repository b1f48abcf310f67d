"""The finished runs of a study: what they delivered, cost and recorded, and which of them can be compared.

Reads the storage; trains and writes nothing.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.comparison import Predictions, clip_counts, fingerprint, joined_predictions
from orchestrator.runs.records import records_of
from orchestrator.runs.resume import finished_outcome
from orchestrator.storage import object_store, published_folders
from orchestrator.study.plan import Member, StudyPlan, run_id

READERS = 8  # threads: an object store takes a while for each of some hundred small files
COSTS = ("seconds", "cpu_seconds", "gpu_seconds")
Cell = tuple[int, int]  # test fold, seed


@dataclass(frozen=True)
class FinishedMember:
    """A run of a study that is done."""

    uri: str
    records: list[dict[str, Any]]  # costs and validations

    def cost(self) -> dict[str, float]:
        """Seconds of training and scoring, over all attempts; steps that were taken in vain are not counted."""
        parts = {(each["step"], each["part"]): each for each in self.records if each["kind"] == "cost"}
        return {name: sum(part[name] for part in parts.values()) for name in COSTS}

    def validations(self, model: str, metric: str) -> dict[int, float]:
        """Step of the loop -> validation score."""
        key = f"{model}/val/{metric}"
        scored = [each for each in self.records if each["kind"] == "metrics" and key in each["values"]]
        return {each["step"]: each["values"][key] for each in scored}

    def folder(self, model: str) -> str:
        return published_folders.published_folder(object_store.join(self.uri, "models", model))


class FinishedRuns:
    """The runs of a study that are done, as they were when this was made."""

    def __init__(self, plan: StudyPlan, storage: str, study_id: str) -> None:
        def read(member: Member) -> FinishedMember | None:
            uri = object_store.join(storage, run_id(study_id, member))
            return None if finished_outcome(uri) is None else FinishedMember(uri, list(filter(_kept, records_of(uri))))

        with ThreadPoolExecutor(READERS) as readers:
            found = zip(plan.members, readers.map(read, plan.members), strict=True)
            self._runs = {member: run for member, run in found if run is not None}

    def of_method(self, method: str) -> dict[Cell, FinishedMember]:
        return {(member.fold, member.seed): run for member, run in self._runs.items() if member.method == method}

    def predictions(self, method: str, model: str, folds: Iterable[int], seed: int) -> Predictions:
        """The test predictions of a model, those of all folds as one test set."""
        runs = self.of_method(method)
        return joined_predictions([runs[fold, seed].folder(model) for fold in folds])

    def clips(self, method: str, model: str, folds: Iterable[int], seed: int) -> tuple[float, float]:
        """Mean numbers of training and of test clips over the folds."""
        runs = self.of_method(method)
        return clip_counts([runs[fold, seed].folder(model) for fold in folds])

    def fingerprints(self, method: str, model: str, cells: Iterable[Cell]) -> set[str]:
        """The data sets that a model was trained on, one if all is well."""
        runs = self.of_method(method)
        return {fingerprint(runs[cell].folder(model)) for cell in cells}


def _kept(record: dict[str, Any]) -> bool:
    """Whether results need the record: of thousands of runs not all of them fit into memory."""
    validated = record["kind"] == "metrics" and any("/val/" in key for key in record["values"])
    return validated or record["kind"] == "cost"


def complete_block(cells: Iterable[Cell]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The folds and seeds of the largest block in which every fold has every seed; of equals the first in order.

    A comparison needs such a block, and of an unfinished study only some cells are there.
    """
    seeds_of: dict[int, set[int]] = {}
    for fold, seed in cells:
        seeds_of.setdefault(fold, set()).add(seed)
    best: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    shared = set[frozenset[int]]()  # what any number of folds have in common
    for own in {frozenset(own) for own in seeds_of.values()}:
        shared |= {own} | {own & other for other in shared}
    for seeds in sorted(shared, key=sorted):
        folds = tuple(sorted(fold for fold, own in seeds_of.items() if seeds <= own))
        if seeds and len(folds) * len(seeds) > len(best[0]) * len(best[1]):
            best = folds, tuple(sorted(seeds))
    return best
