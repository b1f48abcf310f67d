"""How `antiphon study` prints a plan, and the results of a study that is finished or not."""

from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.comparison_table import difference_text, scores_not_compared
from orchestrator.cli.printing import cell, print_out
from orchestrator.study.plan import StudyPlan
from orchestrator.study.results import folds_and_seeds
from workloads.config.study import CONTROL

NOT_THERE = "-"
Row = dict[str, Any]


def print_plan(plan: StudyPlan) -> None:
    """Print the methods with their schedules and the models compared, what is left out, and the stopping rule."""
    table = Table(title=cell(f"{plan.study.name}: {len(plan.members)} runs"))
    for column in ("method", "schedule", "compared", "about"):
        table.add_column(column, overflow="fold")
    for name, method in plan.methods.items():
        about = method.recipe.about
        table.add_row(*map(cell, (name, method.recipe.schedule.kind, ", ".join(method.students), about)))
    Console().print(table)
    _print_left_out(plan.left_out)
    typer.echo(plan.stopping_rule())


def print_results(outcome: Row) -> None:
    """Print one table for each student, then costs and agreement of each method, and what is left out."""
    print_out(f"{outcome['runs']} of {outcome['total']} runs are done: {outcome['rule']}")
    for student in outcome["methods"][CONTROL]["students"]:
        Console().print(_student_table(outcome, student))
    Console().print(_cost_table(outcome))
    _print_left_out(outcome["left_out"])
    for name, row in outcome["methods"].items():
        if row["not_compared"]:
            print_out(f"not compared: {name}: {row['not_compared']}")
        for line in scores_not_compared(row["students"]):
            print_out(f"{name}: {line}")


def _student_table(outcome: Row, student: str) -> Table:
    """Each method's scores of a student beside the control's on the same folds and seeds, with their differences."""
    rows = {name: row["students"][student] for name, row in outcome["methods"].items() if student in row["students"]}
    control = rows[CONTROL]
    metric = control["metric"]
    table = Table(
        title=cell(f"{student}: {metric}, and log loss in nats"),
        caption="of the method / of plain on the same folds and seeds; differences with their 95 % intervals, above 0 "
        "the method is better, in either score",
    )
    for column in ("method", metric, "difference", "log loss", "difference", "folds x seeds"):
        table.add_column(column, justify="left" if column == "method" else "right", overflow="fold")
    scores = (f"{control['score']:.3f}", "", f"{control['log_loss']['score']:.3f}", "")
    table.add_row(CONTROL, *scores, folds_and_seeds(control))
    for name, row in rows.items():
        if name != CONTROL:
            table.add_row(cell(name), *_scores(row), *_scores(row["log_loss"]), folds_and_seeds(row))
    return table


def _scores(row: Row) -> tuple[str, str]:
    return f"{row['taught']:.3f} / {row['untaught']:.3f}", difference_text(row)


def _cost_table(outcome: Row) -> Table:
    """Mean costs of a run, how far its models agree, and the calibration error of each student."""
    students = list(outcome["methods"][CONTROL]["students"])
    on_gpu = any(row["gpu_seconds"] for row in outcome["methods"].values())
    seconds = {"seconds": "seconds", "cpu_seconds": "CPU s", **({"gpu_seconds": "GPU s"} if on_gpu else {})}
    table = Table(title="a run of each method", caption="ECE: calibration error, taught; less is better")
    for column in ("method", "runs", *seconds.values(), "agreement", *(f"ECE {student}" for student in students)):
        table.add_column(column, justify="left" if column == "method" else "right", overflow="fold")
    for name, row in outcome["methods"].items():
        costs = [_number(row[cost], ".1f") for cost in seconds]
        errors = [_number(_calibration(row, student), ".3f") for student in students]
        table.add_row(cell(name), f"{row['runs']}/{row['total']}", *costs, _number(row["agreement"], ".3f"), *errors)
    return table


def _calibration(row: Row, student: str) -> float | None:
    found = row["students"].get(student, {}).get("ece")
    value: float | None = found["taught"] if isinstance(found, dict) else found
    return value


def _number(value: float | None, form: str) -> str:
    return NOT_THERE if value is None else format(value, form)


def _print_left_out(left_out: dict[str, str]) -> None:
    for name, reason in left_out.items():
        print_out(f"left out: {name}: {reason}")
