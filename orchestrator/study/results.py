"""The results of a study, finished or not: each method against the control, its cost, agreement and calibration.

Computed from what the finished runs have left; called by the driver at its end, and by the report at any time.
"""

from itertools import combinations
from typing import Any

from orchestrator.runs.comparison import Predictions, compare_predictions, widen
from orchestrator.runs.resume import finished_outcome
from orchestrator.storage import object_store
from orchestrator.study.curves import learning_curves
from orchestrator.study.finished import COSTS, FinishedRuns, complete_block
from orchestrator.study.plan import StudyPlan
from orchestrator.study.store import StudyStore
from workloads.config.study import CONTROL, ENSEMBLE
from workloads.evaluate.overlap import overlap_factor

Row = dict[str, Any]


def study_results(plan: StudyPlan, storage: str, study_id: str) -> Row:
    """What --json prints of a study: `methods`, by name in the plan's order, and the plan itself.

    A method has `runs` that are done, mean `seconds`, `cpu_seconds` and `gpu_seconds` of one, the `agreement` of the
    models that it shares with the control, and by student what `what_teaching_did` says, with intervals that are
    widened for training sets that overlap (`overlap_factor`), the `folds` and `seeds` on which it rests, and `ece`.
    Of the control `students` have scores alone. A method without a finished run that can be compared has no students,
    and one whose runs were trained on other clips neither: `not_compared` says so, else it is empty.
    """
    runs = FinishedRuns(plan, storage, study_id)
    methods = {name: _method(plan, runs, name) for name in plan.methods}
    if ensemble := _ensemble(plan, runs, methods[CONTROL]):
        methods[ENSEMBLE] = ensemble
    return {
        "name": plan.study.name,
        "about": plan.study.about,
        "rule": plan.stopping_rule(),
        "recipe": plan.study.recipe,
        "labels": plan.labels,
        "folds": list(plan.study.folds),
        "seeds": list(plan.study.seeds),
        "steps": plan.study.steps,
        "runs": sum(len(runs.of_method(name)) for name in plan.methods),
        "total": len(plan.members),
        "left_out": plan.left_out,
        "methods": methods,
        "curves": learning_curves(plan, runs),
    }


def folds_and_seeds(row: Row) -> str:
    """Of which runs a student's row is: 1, 2 x 0, 1, 2."""
    return " x ".join(", ".join(map(str, row[key])) for key in ("folds", "seeds"))


def outcome_so_far(uri: str) -> Row:
    """The outcome of the study at a URI, STORAGE/STUDY_ID, by the runs that are done now; also while it runs."""
    store = StudyStore(uri)
    plan = store.read_plan()
    results = study_results(plan, store.storage, store.study_id)
    failed = {
        run: error
        for run, error in store.read_outcome().get("failed", {}).items()
        if finished_outcome(object_store.join(store.storage, run)) is None
    }
    status = "done" if results["runs"] == results["total"] else "failed" if failed else "unfinished"
    return {"study_id": store.study_id, "status": status} | results | {"failed": failed}


def _method(plan: StudyPlan, runs: FinishedRuns, name: str) -> Row:
    """A method's row: its runs and their cost, and its students on the cells that the control has too."""
    own, method = runs.of_method(name), plan.methods[name]
    costs = [run.cost() for run in own.values()]
    mean = {cost: round(sum(each[cost] for each in costs) / len(costs), 2) for cost in COSTS} if costs else {}
    folds, seeds = complete_block(own.keys() & runs.of_method(CONTROL).keys())
    judged = method.students or plan.models if name == CONTROL else method.students
    reason = _other_clips(runs, name, judged, [(fold, seed) for fold in folds for seed in seeds])
    students = dict[str, Row]()
    if folds and not reason:
        students = {model: _student(plan, runs, name, model, folds, seeds) for model in judged}
    agreement = _agreement(plan, runs, name, folds, seeds) if students else None
    return {
        "about": method.recipe.about,
        "runs": len(own),
        "total": len(plan.study.folds) * len(plan.study.seeds),
        **(mean or dict.fromkeys(COSTS)),
        "agreement": agreement,
        "not_compared": reason,
        "students": students,
    }


def _other_clips(runs: FinishedRuns, name: str, models: tuple[str, ...], cells: list[tuple[int, int]]) -> str:
    """Why a method cannot be compared with the control: data that has changed meanwhile; empty where it can be."""
    for model in models:
        if len(runs.fingerprints(name, model, cells) | runs.fingerprints(CONTROL, model, cells)) > 1:
            return f"its runs of {model} and those of {CONTROL} were not all trained on the same clips"
    return ""


def _student(
    plan: StudyPlan, runs: FinishedRuns, name: str, model: str, folds: tuple[int, ...], seeds: tuple[int, ...]
) -> Row:
    taught = [runs.predictions(name, model, folds, seed) for seed in seeds]
    if name == CONTROL:
        return _scores(taught, plan.labels) | {"folds": list(folds), "seeds": list(seeds)}
    return _compared(plan, runs, model, taught, folds, seeds)


def _compared(
    plan: StudyPlan,
    runs: FinishedRuns,
    model: str,
    taught: list[Predictions],
    folds: tuple[int, ...],
    seeds: tuple[int, ...],
) -> Row:
    """Taught predictions, one for each seed, against those of the control's model."""
    untaught = [runs.predictions(CONTROL, model, folds, seed) for seed in seeds]
    row = compare_predictions(model, list(zip(taught, untaught, strict=True)), plan.labels)
    factor = overlap_factor(len(folds), *runs.clips(CONTROL, model, folds, seeds[0]))
    widen(row, factor)
    ece = {
        side: _scores(of_seeds, plan.labels)["ece"] for side, of_seeds in (("taught", taught), ("untaught", untaught))
    }
    return row | {"seeds": list(seeds), "folds": list(folds), "ece": ece}


def _scores(of_seeds: list[Predictions], labels: str) -> Row:
    """Mean scores over seeds: the primary one, log loss and calibration error."""
    from workloads.evaluate import metrics

    scores = [metrics.score(each["logits_NC"], each["y_NC"], labels) for each in of_seeds]
    mean = {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
    metric = metrics.primary(labels)
    return {"metric": metric, "score": mean[metric], "log_loss": {"score": mean["log_loss"]}, "ece": mean["ece"]}


def _agreement(
    plan: StudyPlan, runs: FinishedRuns, name: str, folds: tuple[int, ...], seeds: tuple[int, ...]
) -> float | None:
    """Mean agreement (`metrics.agreement`) of the method's models that the control has, over their pairs and seeds;
    None of one model."""
    from workloads.evaluate import metrics

    models = [model for model in plan.models if model in plan.methods[name].recipe.models]
    values = []
    for seed in seeds:
        logits = {model: runs.predictions(name, model, folds, seed)["logits_NC"] for model in models}
        values += [metrics.agreement(logits[a], logits[b], plan.labels) for a, b in combinations(models, 2)]
    return sum(values) / len(values) if values else None


def _ensemble(plan: StudyPlan, runs: FinishedRuns, control: Row) -> Row | None:
    """The models of the control together, their probabilities averaged, against each of them alone; costs as much."""
    folds, seeds = complete_block(runs.of_method(CONTROL))
    if len(plan.models) < 2 or not folds or control["not_compared"]:
        return None
    both = [_together(plan, runs, folds, seed) for seed in seeds]
    students = {model: _compared(plan, runs, model, both, folds, seeds) for model in plan.models}
    about = "the control's models together, their probabilities averaged: an upper mark, no training"
    return control | {"about": about, "agreement": None, "students": students}


def _together(plan: StudyPlan, runs: FinishedRuns, folds: tuple[int, ...], seed: int) -> Predictions:
    import torch

    from workloads.teaching.ensemble import mean_of_teachers

    alone = [runs.predictions(CONTROL, model, folds, seed) for model in plan.models]
    logits_ANC = torch.stack([each["logits_NC"].double() for each in alone])
    mean_NC = mean_of_teachers(logits_ANC, plan.labels, mean_of="probabilities", holds="logits")
    return {"logits_NC": mean_NC, "y_NC": alone[0]["y_NC"]}
