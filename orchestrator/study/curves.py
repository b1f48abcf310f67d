"""Validation scores over a student's own steps, the mean of a method's finished runs. Reads nothing itself."""

from orchestrator.study.finished import FinishedMember, FinishedRuns
from orchestrator.study.plan import PlannedMethod, StudyPlan
from workloads.config.study import CONTROL
from workloads.distill.schedule import own_steps, plan_phases

Curve = list[tuple[int, float]]  # (own steps of the model, mean score)


def learning_curves(plan: StudyPlan, runs: FinishedRuns) -> dict[str, dict[str, Curve]]:
    """Student -> method -> its curve of the primary score, the control's first; without methods that have none."""
    metric = "accuracy" if plan.labels == "single" else "mAP"
    curves: dict[str, dict[str, Curve]] = {model: {} for model in plan.models}
    for name, method in plan.methods.items():
        finished = list(runs.of_method(name).values())
        for model in plan.models if name == CONTROL else method.students:
            if curve := _mean_curve(method, finished, model, metric):
                curves[model][name] = curve
    return curves


def _mean_curve(method: PlannedMethod, runs: list[FinishedMember], model: str, metric: str) -> Curve:
    """The mean over runs at the steps at which all of them were validated; while a model does not train it has no own
    steps, and its newest score counts."""
    of_runs = [run.validations(model, metric) for run in runs]
    if not of_runs:
        return []
    steps = sorted(set.intersection(*({*scores} for scores in of_runs)))
    phases = plan_phases(method.recipe)
    by_own_step = {
        own_steps(phases, until=step)[model]: sum(scores[step] for scores in of_runs) / len(of_runs) for step in steps
    }
    return sorted(by_own_step.items())
